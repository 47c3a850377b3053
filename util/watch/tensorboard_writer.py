"""The curves, images and options of a run for TensorBoard, in `checkpoints/NAME/tensorboard`.

View them with `tensorboard --logdir checkpoints`. Needs the package tensorboard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from util.watch.loss_log import LossRecord


class TensorBoardWriter:
    """Writes curves over the number of images trained on; a `Watcher`.

    After a resume TensorBoard drops what earlier files hold beyond the checkpoint (`purge_step`).

    Args:
        folder: for the event files.
        options: of the run, shown as text.
    """

    name, live = "TensorBoard", True

    def __init__(self, folder: Path, options: Mapping[str, object]):
        self.folder, self.options = folder, options

    def begin(self, records: Sequence[LossRecord]) -> None:
        step = records[-1].images + 1 if records else 0
        self._writer = SummaryWriter(str(self.folder), purge_step=step)
        lines = [f"    {name}: {value}" for name, value in self.options.items()]
        self._writer.add_text("options", "\n".join(lines), step)

    def losses(self, record: LossRecord) -> None:
        for tag, value in record.scalars().items():
            self._writer.add_scalar(tag, value, record.images)
        self._writer.flush()

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        for label, image in images.items():
            self._writer.add_image(label, image, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
