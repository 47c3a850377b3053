"""The curves, images and options of a run for TensorBoard, in `checkpoints/NAME/tensorboard`.

View them with `tensorboard --logdir checkpoints`. Needs the package tensorboard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from util.watch.loss_log import LossRecord


class TensorBoardWriter:
    """Writes scalars, images and hyper-parameters with torch's SummaryWriter; a `Watcher`.

    The step of every curve is the number of images trained on. After a resume TensorBoard drops what earlier
    files hold beyond the checkpoint (`purge_step`), so each curve continues.

    Args:
        folder: for the event files.
        options: of the run, shown as hyper-parameters beside its losses.
    """

    name, live = "TensorBoard", True

    def __init__(self, folder: Path, options: Mapping[str, object]):
        self.folder, self.options = folder, options

    def begin(self, records: Sequence[LossRecord]) -> None:
        self._writer = SummaryWriter(str(self.folder), purge_step=records[-1].images + 1 if records else 0)
        self._has_options = False

    def losses(self, record: LossRecord) -> None:
        scalars = record.scalars()
        if not self._has_options:
            # as parts of this run; `add_hparams` would make a second run for them
            plain = {name: _plain(value) for name, value in self.options.items()}
            for summary in hparams(plain, {tag: 0.0 for tag in scalars if tag.startswith("loss/")}):
                self._writer.file_writer.add_summary(summary)
            self._has_options = True
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, record.images)
        self._writer.flush()

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        for label, image in images.items():
            self._writer.add_image(label, image, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _plain(value: object) -> bool | float | str:
    """An option as TensorBoard takes it: numbers and booleans as they are, the rest as text."""
    if isinstance(value, bool) or (isinstance(value, (int, float)) and math.isfinite(value)):
        return value
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
