"""The web page of a training, `web/index.html`: its state, loss curves and the images of every epoch."""

import re
import time
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from util.images import save_png
from util.pages import Page
from util.watch.loss_log import LossRecord
from util.watch.loss_plot import draw_losses

IMAGE = re.compile(r"epoch(\d+)_(.+)\.png")
SAMPLES, SAMPLE_INPUTS = "samples", "sample_inputs"  # labels of the images that every epoch shows
MOST_STRIPS = 8  # epochs whose samples are shown


class TrainingPage:
    """Writes `index.html`, `losses.svg` and images into `folder`/web; a `Watcher`.

    The page is written anew with each row of images, with the first losses of an epoch, and at the end.
    """

    name = "the web page"

    def __init__(self, folder: Path, run: str, epochs: int):
        self.web, self.run, self.epochs = folder / "web", run, epochs

    def begin(self, records: Sequence[LossRecord]) -> None:
        self._curves: dict[str, array] = {}  # compact: a run can log half a million times
        self._newest: LossRecord | None = None
        self._order: list[str] = []  # the labels as the model orders them
        for record in records:
            self._add(record)
        self._epoch = records[-1].epoch if records else 0  # images of a later one are another run's

    def losses(self, record: LossRecord) -> None:
        begins = self._newest is None or record.epoch != self._newest.epoch
        self._add(record)
        if begins:
            self._write()

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray], keep: bool) -> None:
        if keep:
            self._epoch, self._order = epoch, list(images)
            for label, image in images.items():
                save_png(image, self.web / _file(epoch, label))
            self._write()

    def close(self) -> None:
        self._write()

    def _add(self, record: LossRecord) -> None:
        self._newest = record
        for name, value in record.finite().items():
            self._curves.setdefault(name, array("d")).extend((record.epochs_done, value))

    def _write(self) -> None:
        page = Page(self.web, self.run)
        page.add_facts({**self._state(), "written": time.strftime("%Y-%m-%d %H:%M")})
        page.add_link("../train_opt.txt", "all options")
        if self._curves:
            self.web.mkdir(parents=True, exist_ok=True)
            (self.web / "losses.svg").write_text(draw_losses(self._curves), encoding="utf-8")
            page.add_plot("losses.svg", "Loss curves")
        rows: dict[int, list[str]] = {}  # epoch -> labels
        for path in self.web.glob("images/*.png"):
            if (match := IMAGE.fullmatch(path.name)) and int(match[1]) <= self._epoch:
                rows.setdefault(int(match[1]), []).append(match[2])
        epochs = sorted(rows, reverse=True)
        self._add_samples(page, [epoch for epoch in epochs if (self.web / _file(epoch, SAMPLES)).is_file()])
        if epochs:
            page.add_header("Images of the training")
        for epoch in epochs:
            labels = [label for label in self._order if label in rows[epoch]]
            labels += sorted(set(rows[epoch]) - set(labels))  # what the model no longer shows
            page.add_images(f"Epoch {epoch}", {label: _file(epoch, label) for label in labels})
        page.save()

    def _add_samples(self, page: Page, epochs: Sequence[int]) -> None:
        """The same images in up to `MOST_STRIPS` epochs, evenly spaced from the newest to the first."""
        if not epochs:
            return
        page.add_header("The same images over time")
        page.add_strip("inputs", _file(0, SAMPLE_INPUTS))
        for index in np.linspace(0, len(epochs) - 1, min(len(epochs), MOST_STRIPS)).round().astype(int):
            page.add_strip(f"epoch {epochs[index]}", _file(epochs[index], SAMPLES))

    def _state(self) -> dict[str, str]:
        if (record := self._newest) is None:
            return {}
        return {
            "epoch": f"{record.epoch} of {self.epochs}",
            "images": f"{record.images:,}",
            "learning rate": f"{record.lr:.3g}",
            "seconds per image": f"{record.seconds_per_image:.3f}",
            "time left": record.time_left(self.epochs),
        }


def _file(epoch: int, label: str) -> str:
    if label == SAMPLE_INPUTS:
        return "samples/inputs.png"
    return f"samples/epoch{epoch:03d}.png" if label == SAMPLES else f"images/epoch{epoch:03d}_{label}.png"
