"""Freezes the weights at the first loss or gradient that is not finite, without a wait for the device.

The flag `found` stays on the device, and fused Adam takes it as its `found_inf`: from the first bad value on
no update is applied, however late the host reads the report.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


class Failure(NamedTuple):
    """The first bad step (counted from 0 over the guard's life) and what was not finite in it."""

    step: int
    names: list[str]


class FiniteGuard:
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
