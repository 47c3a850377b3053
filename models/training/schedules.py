"""The learning-rate schedules behind `--lr_policy`, stepped once an epoch."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

POLICIES = ("linear", "step", "plateau", "cosine")


def lr_factor(policy: str, epoch: int, n_epochs: int, n_epochs_decay: int, lr_decay_iters: int) -> float:
    """The share of the initial learning rate in `epoch` (1-based): "linear", "step" or "cosine"."""
    if (
        policy == "linear"
    ):  # whole for n_epochs, then down by equal steps that would meet 0 one epoch after the last
        return 1.0 - max(0, epoch - n_epochs) / (n_epochs_decay + 1)
    if policy == "step":
        return 0.1 ** ((epoch - 1) // lr_decay_iters)
    total = n_epochs + n_epochs_decay  # cosine: ends where training ends, not at n_epochs
    return 0.5 * (1 + math.cos(math.pi * min(epoch - 1, total) / total))


def make_scheduler(
    optimizer: Optimizer,
    policy: str = "linear",
    n_epochs: int = 200,
    n_epochs_decay: int = 200,
    lr_decay_iters: int = 50,
    epoch_count: int = 1,
) -> LambdaLR | ReduceLROnPlateau:
    """The scheduler of one optimiser at epoch `epoch_count`; a plateau one is stepped with a loss."""
    if policy == "plateau":
        return ReduceLROnPlateau(optimizer, mode="min", factor=0.2, threshold=0.01, patience=5)
    return LambdaLR(
        optimizer,
        lambda done: lr_factor(policy, done + epoch_count, n_epochs, n_epochs_decay, lr_decay_iters),
    )
