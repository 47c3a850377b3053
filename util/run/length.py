"""How long a training is: a number of epochs, or a number of iterations."""

from __future__ import annotations

from argparse import Namespace
from typing import NamedTuple

from util.run.checkpoint import Progress


class Length(NamedTuple):
    """The end of a training, and what its learning-rate schedule counts. An iteration is one step.

    Attributes:
        unit: "epochs" or "iterations".
        constant: how many at the initial learning rate.
        decay: how many after them.
    """

    unit: str
    constant: int
    decay: int

    @classmethod
    def of(cls, opt: Namespace) -> Length:
        """By `--n_iterations` and `--n_iterations_decay` if there are any, else by `--n_epochs`."""
        if opt.n_iterations + opt.n_iterations_decay > 0:
            return cls("iterations", opt.n_iterations, opt.n_iterations_decay)
        return cls("epochs", opt.n_epochs, opt.n_epochs_decay)

    def __str__(self) -> str:
        return f"{self.total} {self.unit}"

    @property
    def total(self) -> int:
        return self.constant + self.decay

    @property
    def options(self) -> str:
        """The options that set it, as they are typed."""
        return f"--n_{self.unit} or --n_{self.unit}_decay"

    def reached(self, progress: Progress) -> bool:
        """Whether the training is complete."""
        if self.unit == "iterations":
            return progress.steps >= self.total
        return progress.epoch > self.total

    def in_epochs(self, epoch_steps: int) -> float:
        """The length in epochs of `epoch_steps` steps."""
        return self.total if self.unit == "epochs" else self.total / epoch_steps
