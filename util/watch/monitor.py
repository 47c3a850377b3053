"""What shows a training: its lines and progress bar, its logs, and watchers such as the web page or visdom.

A watcher has a `name` for warnings and four methods. `begin(records)` comes first: what it has shown beyond
these `LossRecord`s is void. `losses(record)` adds one. `images(epoch, step, images, keep)` shows images after
`step` images of training, label -> (H, W, 3) uint8 in order; those to `keep` are of --update_html_freq, one
row an epoch, others of --display_freq. `close()` ends it.

Each works in a thread of its own and can neither stop nor slow the training: one that fails costs a warning
and is asked no more, and one that cannot keep up misses updates.
"""

import contextlib
import math
import queue
import threading
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from util import distributed
from util.console import say
from util.errors import UserError
from util.run.progress import Clock, Length, Progress
from util.run.saved_options import option_values
from util.watch import loss_log, services
from util.watch.loss_log import LossRecord

MOST_WAITING = 100  # updates for one watcher; further ones are left out, so memory stays bounded
PATIENCE_AT_END = 20.0  # seconds to show what still waits


class Background:
    """Calls one watcher, in order, from a thread of its own, until it fails."""

    def __init__(self, watcher: Any):
        self.watcher = watcher
        self._calls: queue.Queue[tuple[str, tuple]] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._make_calls, daemon=True)
        self._thread.start()

    def put(self, call: str, *arguments: Any) -> None:
        """Leave a call for the thread, if there is room."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._calls.put_nowait((call, arguments))

    def close(self) -> None:
        """Have the calls made that wait."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._calls.put(("close", ()), timeout=PATIENCE_AT_END)
                self._thread.join(PATIENCE_AT_END)
        if self._thread.is_alive():
            warnings.warn(f"{self.watcher.name}: it did not show the last updates", stacklevel=2)

    def _make_calls(self) -> None:
        call = ""
        try:
            while call != "close":
                call, arguments = self._calls.get()
                getattr(self.watcher, call)(*arguments)
        except Exception as error:  # of whatever library it uses: it must not reach the training
            found = f"{self.watcher.name}: {error or repr(error)}"
            warnings.warn(f"{found}; training continues without it", stacklevel=2)


class Monitor:
    """Logs the run in `folder` and informs its watchers. Only the process that writes checkpoints has one."""

    def __init__(self, folder: str | Path, watchers: Sequence[Any] = ()):
        self.folder = Path(folder)
        self.watchers = [Background(watcher) for watcher in watchers]
        self._begun = self._has_header = self._warned = False

    def losses(self, record: LossRecord) -> None:
        """Log and show the losses of this moment."""
        try:
            loss_log.append(self.folder, record, header=not self._has_header)
            self._has_header = True
        except OSError as error:
            if not self._warned:
                warnings.warn(f"the loss log: {error}; training continues", stacklevel=2)
            self._warned = True
        self._tell("losses", record)

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray], keep: bool) -> None:
        self._tell("images", epoch, step, images, keep)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs so that `load_state_dict` can return to this moment."""
        return {"log": loss_log.sizes(self.folder)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to the moment of a checkpoint: what was logged later is dropped."""
        loss_log.cut(self.folder, state["log"])
        self._begin(loss_log.read_loss_records(self.folder))

    def close(self) -> None:
        """Let every watcher finish that has begun."""
        for watcher in self.watchers if self._begun else []:
            watcher.close()

    def _begin(self, records: Sequence[LossRecord]) -> None:
        self._begun = True
        for watcher in self.watchers:
            watcher.put("begin", records)

    def _tell(self, call: str, *arguments: Any) -> None:
        if not self._begun:
            self._begin([])
        for watcher in self.watchers:
            watcher.put(call, *arguments)


def create_monitor(opt: Namespace, folder: Path, epoch_steps: int) -> Monitor:
    """The monitor of the run in `folder`, with the watchers that the options ask for. Raises `UserError`."""
    watchers, options = [], option_values(opt)
    if not opt.no_html:
        # here, since it needs dominate, which a run without pages need not have
        from util.watch.training_page import TrainingPage

        watchers.append(TrainingPage(folder, opt.name, math.ceil(Length.of(opt).in_epochs(epoch_steps))))
    if opt.display_id is None or opt.display_id > 0:
        try:
            address = opt.display_server, opt.display_port, opt.display_env, opt.display_id or 1
            watchers.append(services.Visdom(opt.name, *address, opt.display_ncols))
        except ImportError as error:
            warnings.warn(f"visdom: {error}; scripts/setup.sh installs it", stacklevel=2)
    try:
        if opt.tensorboard:
            watchers.append(services.TensorBoard(folder / "tensorboard", options))
        if opt.use_wandb:
            watchers.append(services.WeightsAndBiases(folder, opt.name, options))
    except ImportError as error:
        what = "pip install -r requirements-watch.txt, or leave --tensorboard and --use_wandb out"
        raise UserError(f"{error}: {what}") from None
    return Monitor(folder, watchers)


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
        shown = {"desc": f"epoch {self.progress.epoch}/{self.last_epoch}", "initial": self.progress.position}
        disable = True if distributed.rank() else None  # None: only on a terminal
        shown |= {"total": self.epoch_images, "unit": " images", "dynamic_ncols": True}
        self.bar = tqdm(**shown, disable=disable)

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
        done = progress.epoch - 1 + progress.position / self.epoch_images
        moment = progress.epoch, progress.position, progress.images, done
        record = LossRecord(*moment, losses, *self.clock.per_image(), self.model.learning_rate)
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
