"""Adam's learning rates, its state at a resume, and the guard against values that are not finite."""

import math
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from util.run.progress import Length

POLICIES = ("linear", "step", "plateau", "cosine")
STATE = ("best", "bad_epochs", "reductions")  # of a plateau schedule
MOMENTS = ("exp_avg", "exp_avg_sq")
PLATEAU_FACTOR, PLATEAU_PATIENCE, PLATEAU_THRESHOLD = 0.2, 5, 0.01


def lr_factor(opt: Namespace, number: int) -> float:
    """The factor of the initial rate in an epoch, or iteration, of this number (from 1); not of "plateau"."""
    length = Length.of(opt)
    if opt.lr_policy == "linear":  # equal steps behind the constant part, to 0 one step after the last
        return max(0.0, 1.0 - max(0, number - length.constant) / (length.decay + 1))
    if opt.lr_policy == "step":
        return opt.lr_decay_gamma ** ((number - 1) // opt.lr_decay_iters)
    # cosine: ends where training ends, not with the constant part
    return 0.5 * (1 + math.cos(math.pi * min(number - 1, length.total) / length.total))


class Schedule:
    """Sets the learning rates of a training's optimisers, whose rates now are the initial ones.

    The rate follows from the options and the number of the epoch, or iteration, so that options changed at a
    resume act from there on. A plateau schedule also depends on the losses so far: they are its state.
    """

    def __init__(self, opt: Namespace, optimizers: Sequence[Optimizer], first_iteration: int = 1):
        self.opt, self.optimizers, self.first_iteration = opt, optimizers, first_iteration
        self.initial = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]  # each has one group
        self.plateau = opt.lr_policy == "plateau"
        self.counts_steps = Length.of(opt).unit == "iterations" and not self.plateau
        self.best, self.bad_epochs, self.reductions = math.inf, 0, 0
        self.begin(opt.epoch_count, steps=0)

    def begin(self, epoch: int, steps: int) -> None:
        """Set the rates of a training that continues in `epoch`, after so many steps."""
        self.number = self.first_iteration + steps if self.counts_steps else epoch
        self._set_rates()

    def advance(self, mean_loss: float | None = None) -> None:
        """Set the rates of the next epoch, or iteration; a plateau schedule needs the epoch's mean loss."""
        self.number += 1
        if self.plateau and mean_loss < self.best * (1 - PLATEAU_THRESHOLD):
            self.best, self.bad_epochs = mean_loss, 0
        elif self.plateau:
            self.bad_epochs += 1
            if self.bad_epochs > PLATEAU_PATIENCE:
                self.bad_epochs = 0
                self.reductions += 1
        self._set_rates()

    def _set_rates(self) -> None:
        factors = [PLATEAU_FACTOR] * self.reductions if self.plateau else [lr_factor(self.opt, self.number)]
        for optimizer, rate in zip(self.optimizers, self.initial, strict=True):
            optimizer.param_groups[0]["lr"] = math.prod(factors, start=rate)

    def state_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue a plateau schedule; `begin` then sets the rates."""
        self.best, self.bad_epochs, self.reductions = (state[name] for name in STATE)


def plateau_of_1_0(state: dict, initial: float) -> dict[str, float]:
    """The state of a plateau `Schedule` in a training state of version 1.0, which held torch's schedulers."""
    saved = next(iter(state["schedulers"].values()))
    rate = next(iter(state["optimizers"].values()))["param_groups"][0]["lr"]
    reductions = max(round(math.log(rate / initial, PLATEAU_FACTOR)), 0)
    return {"best": saved["best"], "bad_epochs": saved["num_bad_epochs"], "reductions": reductions}


def load_moments(optimizer: Optimizer, saved: dict) -> None:
    """Continue with the moments of `saved`, in the memory layout of the parameters, and with own settings.

    ValueError where their shapes are others: fused Adam does not look, and would write outside its memory.
    """
    own_settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": own_settings})
    for parameter, state in optimizer.state.items():
        shapes = {"step": (), **dict.fromkeys(MOMENTS, parameter.shape)}
        if {name: getattr(value, "shape", None) for name, value in state.items()} != shapes:
            raise ValueError("its optimiser has other moments than the parameters need")
        for name in MOMENTS:
            state[name] = torch.empty_like(parameter).copy_(state[name])


class Failure(NamedTuple):
    """The first bad step (counted from 0 over the guard's life) and what was not finite in it."""

    step: int
    names: list[str]


class FiniteGuard:
    """Freezes the weights at the first loss or gradient that is not finite, without a wait for the device.

    The flag `found` stays on the device, and fused Adam takes it as its `found_inf`: from the first bad value
    on no update is applied, however late the host reads the report.
    """

    def __init__(self, names: Sequence[str], device: torch.device):
        self.names = list(names)
        self.found = torch.zeros((), device=device, dtype=torch.float32)  # 1 from the first bad value on
        # the report: steps begun, the first bad one, then a flag for each name
        self.report = torch.zeros(2 + len(self.names), device=device, dtype=torch.int64)
        self._places: dict[tuple[str, ...], Tensor] = {}
        self._copy: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def begin_step(self) -> None:
        self.report[0] += 1

    def check(self, losses: dict[str, Tensor], gradient: str, parameters: Iterable[Tensor]) -> None:
        """Check `losses` and the gradient of `parameters`, reported as `gradient`, before an update."""
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        values = torch.stack([*(loss.detach() for loss in losses.values()), norm])
        bad = torch.zeros(len(self.names), dtype=torch.bool, device=self.found.device)
        bad[self._places_of((*losses, gradient))] = ~values.isfinite()
        first = bad.any() & (self.found == 0)
        self.report[1] = torch.where(first, self.report[0] - 1, self.report[1])
        self.report[2:] = torch.where(first, bad.long(), self.report[2:])
        self.found.copy_(torch.maximum(self.found, bad.any().float()))

    def _places_of(self, names: tuple[str, ...]) -> Tensor:
        """Where `names` stand, on the device; kept, since a captured step cannot bring numbers there."""
        if names not in self._places:
            places = [self.names.index(name) for name in names]
            self._places[names] = torch.tensor(places, device=self.found.device)
        return self._places[names]

    def failure(self, wait: bool = False) -> Failure | None:
        """What went wrong, if anything. On CUDA, without `wait`, from a copy a few steps old."""
        if self.found.is_cuda and not wait:
            if self._copied is None:
                self._copy = torch.empty(self.report.shape, dtype=self.report.dtype, pin_memory=True)
                self._copied = torch.cuda.Event()
            elif not self._copied.query():
                return None
            elif failure := self._read(self._copy):
                return failure
            self._copy.copy_(self.report, non_blocking=True)
            self._copied.record(torch.cuda.current_stream(self.report.device))
            return None
        return self._read(self.report)

    def _read(self, report: Tensor) -> Failure | None:
        _, step, *flags = report.tolist()
        names = [name for name, flag in zip(self.names, flags, strict=True) if flag]
        return Failure(step, names) if names else None
