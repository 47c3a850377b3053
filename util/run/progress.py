"""Where a training stands, how long it is, and how fast it goes."""

import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


@dataclass
class Progress:
    """Where a training stands, over all processes."""

    epoch: int = 1
    position: int = 0  # images done in the epoch
    images: int = 0
    steps: int = 0
    loss_G_sum: float = 0.0  # of the headline loss over the steps of this epoch, for the plateau schedule
    epoch_steps: int = 0

    def advance(self, batch: int) -> None:
        """A step on `batch` images is done."""
        self.position += batch
        self.images += batch
        self.steps += 1
        self.epoch_steps += 1

    def crossed(self, frequency: int, batch: int) -> bool:
        """Whether the last step went over a multiple of `frequency` images, whatever the batch size."""
        return self.images // frequency > (self.images - batch) // frequency

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.position, self.epoch_steps, self.loss_G_sum = epoch, 0, 0, 0.0


class Length(NamedTuple):
    """The end of a training, and what its learning-rate schedule counts. An iteration is one step."""

    unit: str  # "epochs" or "iterations"
    constant: int  # how many at the initial learning rate
    decay: int  # how many after them

    @classmethod
    def of(cls, opt: Namespace) -> "Length":
        """By `--n_iterations` and `--n_iterations_decay` if there are any, else by `--n_epochs`."""
        if opt.n_iterations + opt.n_iterations_decay > 0:
            return cls("iterations", opt.n_iterations, opt.n_iterations_decay)
        return cls("epochs", opt.n_epochs, opt.n_epochs_decay)

    @property
    def total(self) -> int:
        return self.constant + self.decay

    def __str__(self) -> str:
        return f"{self.total} {self.unit}"

    def reached(self, progress: Progress) -> bool:
        return progress.steps >= self.total if self.unit == "iterations" else progress.epoch > self.total

    def in_epochs(self, epoch_steps: int) -> float:
        """The length in epochs of `epoch_steps` steps."""
        return self.total if self.unit == "epochs" else self.total / epoch_steps


class Clock:
    """Seconds per image, waiting for data and in total, since the last call of `per_image`."""

    def __init__(self):
        self.begun = self._since = time.perf_counter()
        self._waited, self._images = 0.0, 0

    def watch(self, batches: Iterable, images: int) -> Iterator:
        """The batches, of so many images each, with a note of the time until each arrives."""
        asked = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - asked
            self._images += images
            yield batch
            asked = time.perf_counter()

    def per_image(self) -> tuple[float, float]:
        """(total, waiting for data), in seconds per image."""
        now, images = time.perf_counter(), max(self._images, 1)
        means = (now - self._since) / images, self._waited / images
        self._since, self._waited, self._images = now, 0.0, 0
        return means
