"""The order of an epoch: which image is at which position, split into batches for one process or several.

The order is a function of (seed, epoch), and a batch is a range of positions. So a run can resume at any
position, with another number of workers or processes, and continues with the images it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from util.errors import UserError


class SampleKey(NamedTuple):
    """The index of a data set: epoch from 1, position in the epoch from 0, index of the image."""

    epoch: int
    position: int
    index: int


class EpochSampler:
    """Batches of `SampleKey` for one rank.

    Global batch k holds positions [k G, (k + 1) G), G = batch_size * world_size, and rank r its r-th part of
    batch_size positions. So the ranks together see the batch of one process with batch_size G.

    Args:
        num_images: images in an epoch.
        shuffle: a new order for every epoch (else by index).
        drop_last: leave out the incomplete global batch at the end (training); else the ranks share what
            there is.

    Raises:
        UserError: drop_last, and an epoch has less than one global batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
    ) -> None:
        assert batch_size >= 1 and 0 <= rank < world_size
        self.num_images, self.batch_size, self.seed, self.shuffle = num_images, batch_size, seed, shuffle
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        if drop_last and num_images < self.global_batch:
            processes = f" x {world_size} processes" if world_size > 1 else ""
            raise UserError(
                f"an epoch has {num_images} images, less than one batch ({batch_size}{processes}). "
                f"Lower --batch_size to {max(1, num_images // world_size)} or add images."
            )
        self._epoch, self._first_position = 1, 0

    @property
    def global_batch(self) -> int:
        """Images in a batch over all processes."""
        return self.batch_size * self.world_size

    def order(self, epoch: int) -> list[int]:
        """The image index at each position of an epoch."""
        indices = list(range(self.num_images))
        if self.shuffle:
            random.Random(f"order {self.seed} {epoch}").shuffle(indices)
        return indices

    def start(self, epoch: int, first_position: int = 0) -> None:
        """Make the next iteration that of `epoch`, after the first `first_position` images."""
        self._epoch, self._first_position = epoch, first_position

    def __len__(self) -> int:
        """Global batches in a whole epoch."""
        whole, rest = divmod(self.num_images, self.global_batch)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self._batches(self._epoch, self._first_position)

    def _batches(self, epoch: int, first_position: int) -> Iterator[list[SampleKey]]:
        order = self.order(epoch)
        end = self.num_images - (self.global_batch - 1 if self.drop_last else 0)
        for start in range(first_position, end, self.global_batch):
            mine = start + self.rank * self.batch_size
            positions = range(mine, min(mine + self.batch_size, self.num_images))
            if positions:
                yield [SampleKey(epoch, position, order[position]) for position in positions]
