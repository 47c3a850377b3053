"""What shows a training: its logs, and watchers such as the web page, visdom, TensorBoard, Weights & Biases.

Each watcher works in a thread of its own and can neither stop nor slow the training: one that fails costs a
warning and rests for a while, and one that cannot keep up misses updates.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from util.run.length import Length
from util.watch.loss_log import LossLog, LossRecord, logged_records

MOST_WAITING = 100  # updates for one watcher; further ones are left out, so memory stays bounded
# At the top of the page, those that the run has.
KEY_OPTIONS = tuple(
    "model QS_mode dataroot direction preprocess crop_size batch_size lr seed precision".split()
)
FIRST_REST, LAST_REST = 15.0, 600.0  # seconds after a failure, doubled after each further one
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
        """Start from these records, in order; what was shown beyond the last one is void.

        The first call, and the first one after a failure.
        """

    def losses(self, record: LossRecord) -> None:
        """Show the losses of this moment."""

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show images of `epoch`, after `step` images of training: label -> (H, W, 3) uint8, in order."""

    def close(self) -> None:
        """Finish. No call follows."""


class Background:
    """Calls one watcher, in order, from a thread of its own.

    Attributes:
        problem: what went wrong first; empty while nothing has.
    """

    def __init__(self, watcher: Watcher, read_log: Callable[[], Sequence[LossRecord]]):
        self.watcher, self._read_log = watcher, read_log
        self.problem = ""
        self._calls: queue.Queue[tuple[str, tuple]] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._make_calls, name=watcher.name, daemon=True)
        self._thread.start()

    def put(self, call: str, *arguments: Any) -> None:
        """Leave a call for the thread."""
        try:
            self._calls.put_nowait((call, arguments))
        except queue.Full:
            self._note(f"{MOST_WAITING} updates wait to be shown, so some are left out")

    def close(self, timeout: float = PATIENCE_AT_END) -> None:
        """Make the calls that wait, for at most `timeout` seconds."""
        with contextlib.suppress(queue.Full):
            self._calls.put(("close", ()), timeout=timeout)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._note(f"the last updates were not shown within {timeout:g} s")

    def _make_calls(self) -> None:
        failed, rested, rest = False, 0.0, FIRST_REST
        call = ""
        while call != "close":
            call, arguments = self._calls.get()
            if failed and time.monotonic() < rested:
                continue
            try:
                if failed:
                    self.watcher.begin(self._read_log())
                if not (failed and call in ("begin", "losses")):  # which the log holds already
                    getattr(self.watcher, call)(*arguments)
                failed, rest = False, FIRST_REST
            except Exception as error:  # of whatever library it uses: it must not reach the training
                self._note(str(error) or repr(error))
                failed, rested, rest = True, time.monotonic() + rest, min(2 * rest, LAST_REST)

    def _note(self, problem: str) -> None:
        self.problem = self.problem or problem


class Monitor:
    """Logs one run and informs its watchers. Only the process that writes checkpoints has one.

    Args:
        folder: of the run, `checkpoints/NAME`, where `loss_log.txt` and `log.jsonl` are written.
        watchers: where else the run is shown.
    """

    def __init__(self, folder: str | Path, watchers: Sequence[Watcher] = ()):
        self.folder = Path(folder)
        self.watchers = [Background(watcher, lambda: logged_records(self.folder)) for watcher in watchers]
        self._log = LossLog(self.folder)
        self._begun = False
        self._warned: set[str] = set()

    def losses(self, record: LossRecord) -> None:
        """Log and show the losses of this moment."""
        self._begin([])
        try:
            self._log.losses(record)
        except OSError as error:
            self._warn("the loss log", str(error))
        self._inform(self.watchers, "losses", record)

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray], save: bool) -> None:
        """Show images of `epoch`: label -> (H, W, 3) uint8, in the model's order, not changed afterwards.

        Args:
            step: images trained on so far.
            save: they become the images of this epoch, for watchers that keep one row per epoch.
        """
        self._begin([])
        self._inform([w for w in self.watchers if save or w.watcher.live], "images", epoch, step, images)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs so that `load_state_dict` can return to this moment."""
        return {"log": self._log.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to the moment of a checkpoint: what was logged later is dropped."""
        records: list[LossRecord] = []
        try:
            self._log.load_state_dict(state["log"])
            records = logged_records(self.folder)
        except OSError as error:
            self._warn("the loss log", str(error))
        self._begin(records)

    def close(self) -> None:
        """Let every watcher finish."""
        for watcher in self.watchers:
            watcher.close()
        self._inform(self.watchers)

    def _begin(self, records: Sequence[LossRecord]) -> None:
        if not self._begun:
            self._begun = True
            self._inform(self.watchers, "begin", records)

    def _inform(self, watchers: Sequence[Background], *call: Any) -> None:
        for watcher in watchers:
            if call:
                watcher.put(*call)
            if watcher.problem:
                self._warn(watcher.watcher.name, watcher.problem)

    def _warn(self, name: str, reason: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(f"{name}: {reason}; training continues", RuntimeWarning, stacklevel=2)


def create_monitor(opt: Namespace, folder: Path, epoch_steps: int) -> Monitor:
    """The monitor of the run in `folder`, with the watchers that the options ask for.

    Args:
        epoch_steps: steps of an epoch.
    """
    # each is imported only where it is used, as its package may be missing
    watchers: list[Watcher] = []
    options = {name: value for name, value in sorted(vars(opt).items()) if name not in ("given", "isTrain")}
    if not opt.no_html:
        from util.watch.training_page import TrainingPage

        shown = {name: str(options[name]) for name in KEY_OPTIONS if options.get(name) is not None}
        epochs = math.ceil(Length.of(opt).in_epochs(epoch_steps))
        watchers.append(TrainingPage(folder, opt.name, epochs, shown))
    if opt.display_id is None or opt.display_id > 0:
        try:
            from util.watch.visdom_client import VisdomClient

            address = opt.display_server, opt.display_port, opt.display_env, opt.display_id or 1
            watchers.append(VisdomClient(opt.name, *address, opt.display_ncols))
        except ImportError as error:
            warnings.warn(
                f"visdom: it cannot be imported ({error}), so there are no live curves; scripts/setup.sh "
                "installs it, --display_id 0 turns this warning off",
                RuntimeWarning,
                stacklevel=2,
            )
    if opt.tensorboard:
        from util.watch.tensorboard_writer import TensorBoardWriter

        watchers.append(TensorBoardWriter(folder / "tensorboard", options))
    if opt.use_wandb:
        from util.watch.wandb_run import WandbRun

        watchers.append(WandbRun(folder, opt.name, opt.wandb_project_name, options))
    return Monitor(folder, watchers)
