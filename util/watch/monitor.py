"""What shows a training: its logs, and watchers such as the web page, visdom, TensorBoard, Weights & Biases.

Each watcher works in a thread of its own and can neither stop nor slow the training: one that fails costs a
warning and is asked no more, and one that cannot keep up misses updates.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from util.run.progress import Length
from util.watch.loss_log import LossLog, LossRecord, read_loss_records

MOST_WAITING = 100  # updates for one watcher; further ones are left out, so memory stays bounded
PATIENCE_AT_END = 20.0  # seconds to show what still waits


class Watcher(Protocol):
    """Shows a training somewhere. One thread makes all calls, which may take their time and may raise.

    What it imports is imported where it is made, in the main thread: the loader forks workers, in which an
    import that is under way in another thread stays locked.

    Attributes:
        name: what warnings call it.
        live: it takes the images of every --display_freq, else only those of --update_html_freq.
    """

    name: str
    live: bool

    def begin(self, records: Sequence[LossRecord]) -> None:
        """The first call. What was shown beyond the last of these records is void."""

    def losses(self, record: LossRecord) -> None: ...

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show images of `epoch`, after `step` images of training: label -> (H, W, 3) uint8, in order."""

    def close(self) -> None:
        """Finish. No call follows."""


class Background:
    """Calls one watcher, in order, from a thread of its own, until it fails."""

    def __init__(self, watcher: Watcher):
        self.watcher = watcher
        self._calls: queue.Queue[tuple[str, tuple]] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._make_calls, name=watcher.name, daemon=True)
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
            warnings.warn(
                f"{self.watcher.name}: {error or repr(error)}; training continues without it", stacklevel=2
            )


class Monitor:
    """Logs the run in `folder` and informs its watchers. Only the process that writes checkpoints has one."""

    def __init__(self, folder: str | Path, watchers: Sequence[Watcher] = ()):
        self.folder = Path(folder)
        self.watchers = [Background(watcher) for watcher in watchers]
        self._log = LossLog(self.folder)
        self._begun = self._warned = False

    def losses(self, record: LossRecord) -> None:
        """Log and show the losses of this moment."""
        self._begin([])
        try:
            self._log.losses(record)
        except OSError as error:
            if not self._warned:
                warnings.warn(f"the loss log: {error}; training continues", stacklevel=2)
            self._warned = True
        for watcher in self.watchers:
            watcher.put("losses", record)

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray], save: bool) -> None:
        """As `Watcher.images`; `save`: as those of this epoch, for watchers that keep one row per epoch."""
        self._begin([])
        for watcher in self.watchers:
            if save or watcher.watcher.live:
                watcher.put("images", epoch, step, images)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs so that `load_state_dict` can return to this moment."""
        return {"log": self._log.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to the moment of a checkpoint: what was logged later is dropped."""
        self._log.load_state_dict(state["log"])
        self._begin(read_loss_records(self.folder))

    def close(self) -> None:
        """Let every watcher finish."""
        for watcher in self.watchers:
            watcher.close()

    def _begin(self, records: Sequence[LossRecord]) -> None:
        if not self._begun:
            for watcher in self.watchers:
                watcher.put("begin", records)
            self._begun = True


def create_monitor(opt: Namespace, folder: Path, epoch_steps: int) -> Monitor:
    """The monitor of the run in `folder`, with the watchers that the options ask for."""
    # each is imported only where it is used, as its package may be missing
    watchers: list[Watcher] = []
    options = {name: value for name, value in sorted(vars(opt).items()) if name not in ("given", "isTrain")}
    if not opt.no_html:
        from util.watch.training_page import TrainingPage

        epochs = math.ceil(Length.of(opt).in_epochs(epoch_steps))
        watchers.append(TrainingPage(folder, opt.name, epochs))
    if opt.display_id is None or opt.display_id > 0:
        try:
            from util.watch.visdom_client import VisdomClient

            address = opt.display_server, opt.display_port, opt.display_env, opt.display_id or 1
            watchers.append(VisdomClient(opt.name, *address, opt.display_ncols))
        except ImportError as error:
            warnings.warn(f"visdom: {error}; scripts/setup.sh installs it", stacklevel=2)
    if opt.tensorboard:
        from util.watch.tensorboard_writer import TensorBoardWriter

        watchers.append(TensorBoardWriter(folder / "tensorboard", options))
    if opt.use_wandb:
        from util.watch.wandb_run import WandbRun

        watchers.append(WandbRun(folder, opt.name, options))
    return Monitor(folder, watchers)
