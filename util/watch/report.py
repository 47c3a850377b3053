"""What a training prints and shows as it runs, and when: progress bar, lines of losses, images."""

import math
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from util import distributed
from util.console import say
from util.run.progress import Clock, Length, Progress
from util.watch.loss_log import LossRecord
from util.watch.monitor import Monitor


@dataclass
class Report:
    """Reports the steps of one training; every process has one, the first alone prints and has a monitor."""

    monitor: Monitor | None
    model: Any
    progress: Progress
    opt: Namespace
    epoch_images: int
    global_batch: int  # images of a step over all processes
    samples: Any = None  # `models.samples.Samples`, the images that every epoch shows
    time_left = "unknown time"
    # Only a plateau schedule needs the epoch's mean of the headline loss; its sum stays on the device.
    _sum: torch.Tensor | None = None

    def __post_init__(self):
        self.length = Length.of(self.opt)
        self.epochs = self.length.in_epochs(self.epoch_images // self.global_batch)
        self.last_epoch = math.ceil(self.epochs)

    def begin_epoch(self, clock: Clock) -> None:
        self.clock = clock
        if self.opt.lr_policy == "plateau":
            self._sum = torch.tensor(self.progress.loss_G_sum, device=self.model.device)
        self.bar = tqdm(
            total=self.epoch_images,
            initial=self.progress.position,
            desc=f"epoch {self.progress.epoch}/{self.last_epoch}",
            unit=" images",
            disable=True if distributed.rank() else None,  # None: only on a terminal
            dynamic_ncols=True,
        )

    def step(self) -> None:
        """Show what is due after a step."""
        progress = self.progress
        self.bar.update(self.global_batch)
        if self._sum is not None:
            self._sum += self.model.losses[self.model.headline[0]].detach()
        first = progress.images == self.global_batch  # a new training shows its first losses at once
        if first or progress.crossed(self.opt.print_freq, self.global_batch):
            self._losses()
        if self.monitor and self.monitor.watchers:
            self._images()

    def _images(self) -> None:
        opt, progress = self.opt, self.progress
        last = progress.position >= self.epoch_images or self.length.reached(progress)
        keep = last or progress.crossed(opt.update_html_freq, self.global_batch)
        if keep or progress.crossed(opt.display_freq, self.global_batch):
            images = self.model.pictures()
            if keep and self.samples:
                try:
                    images |= self.samples.pictures()
                except torch.OutOfMemoryError:
                    say("note: too little memory to show the same images in every epoch; none are shown")
                    self.samples = None
            self.monitor.images(progress.epoch, progress.images, images, keep)

    def _losses(self) -> None:
        progress = self.progress
        losses = self.model.get_current_losses()
        losses = dict(zip(losses, distributed.mean(list(losses.values())), strict=True))
        seconds, data_seconds = self.clock.per_image()
        record = LossRecord(
            progress.epoch,
            iters=progress.position,
            images=progress.images,
            epochs_done=progress.epoch - 1 + progress.position / self.epoch_images,
            losses=losses,
            seconds_per_image=seconds,
            data_seconds=data_seconds,
            lr=self.model.learning_rate,
        )
        say(record.line())
        if self.monitor:
            self.monitor.losses(record)
        headline = ", ".join(f"{name} {losses[name]:.3f}" for name in self.model.headline)
        self.time_left = record.time_left(self.epochs)
        self.bar.set_postfix_str(f"{headline}, {self.time_left} left in all", refresh=False)

    def save_mean(self) -> None:
        """Put the mean of all processes' sums of the headline loss into the progress, to resume from."""
        if self._sum is not None:
            (self.progress.loss_G_sum,) = distributed.mean([float(self._sum)])

    def mean_headline(self) -> float | None:
        """The epoch's mean headline loss over all processes; None where no plateau schedule needs it."""
        if self._sum is None:
            return None
        return distributed.mean([float(self._sum) / max(self.progress.epoch_steps, 1)])[0]

    def end_epoch(self) -> None:
        self.bar.close()
