"""The learning-rate schedules behind `--lr_policy`, stepped once per epoch, or per iteration."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

POLICIES = ("linear", "step", "plateau", "cosine")


def lr_factor(policy: str, number: int, constant: int, decay: int, decay_iters: int, gamma: float) -> float:
    """The factor of the initial learning rate in an epoch, or iteration: "linear", "step" or "cosine".

    Args:
        number: of the epoch or iteration, from 1; the other counts have the same unit.
        constant, decay: how many train at the initial rate, and how many after them.
        decay_iters, gamma: "step" multiplies by gamma after each `decay_iters`.
    """
    if policy == "linear":  # after the constant part down by equal steps, to reach 0 one step after the last
        return max(0.0, 1.0 - max(0, number - constant) / (decay + 1))
    if policy == "step":
        return gamma ** ((number - 1) // decay_iters)
    total = constant + decay  # cosine: ends where training ends, not with the constant part
    return 0.5 * (1 + math.cos(math.pi * min(number - 1, total) / total))


def make_scheduler(
    optimizer: Optimizer,
    policy: str = "linear",
    constant: int = 200,
    decay: int = 200,
    decay_iters: int = 50,
    first: int = 1,
    gamma: float = 0.1,
) -> LambdaLR | ReduceLROnPlateau:
    """The scheduler of one optimiser, see `lr_factor`.

    A plateau schedule is stepped with an epoch's mean loss.

    Args:
        first: the number of the epoch, or iteration, that training begins with.
    """
    if policy == "plateau":
        return ReduceLROnPlateau(optimizer, mode="min", factor=0.2, threshold=0.01, patience=5)
    return LambdaLR(
        optimizer,
        lambda done: lr_factor(policy, first + done, constant, decay, decay_iters, gamma),
    )


def restore_rate(scheduler: LambdaLR | ReduceLROnPlateau) -> None:
    """Give the optimiser the rate of a loaded scheduler's position, by the schedule as it is now.

    The saved rate belongs to the saved schedule: after its last epoch it is 0, even if more follow now.
    """
    if isinstance(scheduler, LambdaLR):
        groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, base, factor in groups:
            group["lr"] = base * factor(scheduler.last_epoch)
