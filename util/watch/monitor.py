"""One interface to what shows a training: the log, and watchers such as the web page, visdom, TensorBoard.

A watcher that fails costs one warning, and one that blocks is dropped: neither stops or slows the training.
"""

from __future__ import annotations

import math
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from util.run.length import Length
from util.watch.loss_log import LossLog, LossRecord, logged_records
from util.watch.tensorboard_writer import TensorBoardWriter
from util.watch.training_page import TrainingPage
from util.watch.visdom_client import VisdomClient
from util.watch.wandb_run import WandbRun

PATIENCE = 10.0  # seconds; a watcher whose call takes longer is dropped

# Shown at the top of the page, those that the run has.
KEY_OPTIONS = tuple(
    "model QS_mode dataroot direction preprocess crop_size batch_size lr seed precision".split()
)


class Watcher(Protocol):
    """Shows a training somewhere. Its calls may raise; they return at once, so what waits needs a thread.

    Attributes:
        name: what warnings call it.
        live: it takes the images of every --display_freq, else only those of --update_html_freq.
    """

    name: str
    live: bool

    def resume(self, records: Sequence[LossRecord]) -> None:
        """Start from the records up to a checkpoint, in order. What was shown beyond the last one is void."""

    def losses(self, record: LossRecord) -> None:
        """Show the losses of this moment."""

    def images(self, epoch: int, images: Mapping[str, np.ndarray]) -> None:
        """Show images of `epoch`: label -> (H, W, 3) uint8, in the model's order, not changed afterwards."""

    def close(self) -> None:
        """Finish. No call follows."""


class Monitor:
    """Logs one run and informs its watchers. Only the process that writes checkpoints has one.

    Args:
        folder: of the run, `checkpoints/NAME`, where `loss_log.txt` and `log.jsonl` are written.
        watchers: where else the run is shown.
        clock: gives seconds; a test may hand in its own.
    """

    def __init__(
        self,
        folder: str | Path,
        watchers: Sequence[Watcher] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder = Path(folder)
        self.watchers = list(watchers)
        self._clock = clock
        self._log = LossLog(self.folder)
        self._warned: set[str] = set()

    def losses(self, record: LossRecord) -> None:
        """Log and show the losses of this moment."""
        self._guard("the loss log", self._log.losses, record)
        self._inform("losses", record)

    def images(self, epoch: int, images: Mapping[str, np.ndarray], save: bool) -> None:
        """Show images of `epoch`: label -> (H, W, 3) uint8, in the model's order, not changed afterwards.

        save: they become the images of this epoch, for watchers that keep one row per epoch.
        """
        self._inform("images", epoch, images, among=[w for w in self.watchers if save or w.live])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs so that `load_state_dict` can return to this moment."""
        return {"log": self._log.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to the moment of a checkpoint: what was logged later is dropped."""
        self._guard("the loss log", self._log.load_state_dict, state["log"])
        records = self._guard("the loss log", logged_records, self.folder)
        self._inform("resume", records or [])

    def close(self) -> None:
        """Let every watcher finish."""
        self._inform("close")

    def _inform(self, call: str, *arguments: Any, among: Sequence[Watcher] | None = None) -> None:
        for watcher in list(self.watchers) if among is None else among:
            began = self._clock()
            self._guard(watcher.name, getattr(watcher, call), *arguments)
            if self._clock() - began > PATIENCE:
                self.watchers.remove(watcher)
                self._warn(
                    watcher.name, f"a call took more than {PATIENCE:.0f} s, so it is no longer updated"
                )

    def _guard(self, name: str, call: Callable, *arguments: Any) -> Any:
        """Call; an exception becomes a warning, the first time that `name` raises one."""
        try:
            return call(*arguments)
        except Exception as error:  # of whatever library a watcher uses: it must not reach the training
            if name not in self._warned:
                self._warn(name, str(error) or repr(error))

    def _warn(self, name: str, reason: str) -> None:
        self._warned.add(name)
        warnings.warn(f"{name}: {reason}; training continues", RuntimeWarning, stacklevel=2)


def create_monitor(opt: Namespace, folder: Path, epoch_steps: int) -> Monitor:
    """The monitor of the run in `folder`, with the watchers of the options.

    Args:
        epoch_steps: steps of an epoch.
    """
    watchers: list[Watcher] = []
    if not opt.no_html:
        epochs = math.ceil(Length.of(opt).in_epochs(epoch_steps))
        options = {name: value for name in KEY_OPTIONS if (value := getattr(opt, name, None)) is not None}
        if "qs" not in getattr(opt, "model", "qs"):  # other models do not select queries
            options.pop("QS_mode", None)
        page = TrainingPage(folder, opt.name, epochs=epochs, options=options)
        watchers.append(page)
    if opt.display_id is None or opt.display_id > 0:
        display_id = opt.display_id or 1
        address = opt.display_server, opt.display_port, opt.display_env, display_id
        watchers.append(VisdomClient(opt.name, *address, opt.display_ncols))
    options = {name: value for name, value in sorted(vars(opt).items()) if name not in ("given", "isTrain")}
    if opt.tensorboard:
        watchers.append(TensorBoardWriter(folder / "tensorboard", options))
    if opt.use_wandb:
        watchers.append(WandbRun(folder, opt.name, opt.wandb_project_name, options))
    return Monitor(folder, watchers)
