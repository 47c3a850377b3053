"""The curves, images and options of a run for TensorBoard, in `checkpoints/NAME/tensorboard`.

View them with `tensorboard --logdir checkpoints`. Needs the package tensorboard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from util.watch.background import BackgroundCalls
from util.watch.loss_log import LossRecord

PATIENCE_AT_END = 5.0  # seconds to write what still waits


class TensorBoardWriter:
    """Writes scalars, images and hyper-parameters with torch's SummaryWriter; a `Watcher`.

    The step of every curve is the number of images trained on. Files are written by a thread. After a resume,
    TensorBoard drops what earlier files hold beyond the checkpoint (`purge_step`), so each curve continues.

    Args:
        folder: for the event files.
        options: of the run, shown as hyper-parameters beside its losses.
    """

    name, live = "TensorBoard", True

    def __init__(self, folder: str | Path, options: Mapping[str, object]):
        # Imported here, not in the thread: see VisdomClient.
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.folder, self.options = Path(folder), options
        self._summary_writer, self._hparams = SummaryWriter, hparams
        self._calls = BackgroundCalls(self.name)
        self._writer = None  # used by the thread alone
        self._begun = self._has_options = False
        self._step = 0  # images trained on, of the newest record

    def resume(self, records: Sequence[LossRecord]) -> None:
        self._step = records[-1].images if records else 0
        self._begin(purge_step=self._step + 1 if records else 0)

    def losses(self, record: LossRecord) -> None:
        self._begin(purge_step=0)
        self._step = record.images
        scalars = {f"loss/{name}": value for name, value in record.losses.items() if value is not None}
        if not self._has_options:
            self._calls.put(lambda: self._write_options(list(scalars)))
            self._has_options = True
        scalars |= {
            "training/learning_rate": record.lr,
            "training/epoch": record.epochs_done,
            "training/seconds_per_image": record.seconds_per_image,
        }
        self._calls.put(lambda: self._write_scalars(scalars, record.images))

    def images(self, epoch: int, images: Mapping[str, np.ndarray]) -> None:
        self._begin(purge_step=0)
        step = self._step
        self._calls.put(lambda: self._write_images(images, step))

    def close(self) -> None:
        self._calls.put(lambda: self._writer and self._writer.close())
        self._calls.close(PATIENCE_AT_END)

    def _begin(self, purge_step: int) -> None:
        """Open the files with the session's first call; earlier events from `purge_step` on are void."""
        if not self._begun:
            self._begun = True
            self._calls.put(lambda: self._open(purge_step))

    def _open(self, purge_step: int) -> None:
        self._writer = self._summary_writer(str(self.folder), purge_step=purge_step)

    def _write_options(self, tags: Sequence[str]) -> None:
        """The options as hyper-parameters of this run; `add_hparams` would make a second run for them."""
        plain = {name: _plain(value) for name, value in self.options.items()}
        for summary in self._hparams(plain, dict.fromkeys(tags, 0.0)):
            self._writer.file_writer.add_summary(summary)

    def _write_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def _write_images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        for label, image in images.items():
            self._writer.add_image(label, image, step, dataformats="HWC")
        self._writer.flush()


def _plain(value: object) -> bool | float | str:
    """An option as TensorBoard takes it: numbers and booleans as they are, the rest as text."""
    if isinstance(value, bool) or (isinstance(value, (int, float)) and math.isfinite(value)):
        return value
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
