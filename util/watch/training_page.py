"""The web page of a training, `web/index.html`: its state, loss curves and the images of every epoch."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from util.images import save_png
from util.pages import Page
from util.watch.loss_log import LossRecord
from util.watch.loss_plot import LossHistory, draw_losses

IMAGE_FILE = re.compile(r"epoch(\d+)_?(.*)\.png")
SAMPLES, SAMPLE_INPUTS = "samples", "sample_inputs"  # labels of the images that every epoch shows
MOST_STRIPS = 8  # epochs whose samples are shown


class TrainingPage:
    """Writes `index.html`, `losses.svg` and images into `folder`/web; a `Watcher`.

    The page is written anew with each row of images, with the first losses of an epoch, and at the end.

    Args:
        folder: of the run, `checkpoints/NAME`.
        epochs: of the whole training.
    """

    name, live = "the web page", False

    def __init__(self, folder: Path, run: str, epochs: int):
        self.web, self.run, self.epochs = folder / "web", run, epochs

    def begin(self, records: Sequence[LossRecord]) -> None:
        self._history = LossHistory(records)
        self._newest = records[-1] if records else None
        self._order: list[str] = []  # the labels as the model orders them
        self._labels: dict[int, set[str]] = {}  # epoch -> labels of its images
        last = self._newest.epoch if self._newest else 0  # images of a later epoch are another run's
        for path in self.web.glob("*/*.png"):  # of earlier sessions
            if (match := IMAGE_FILE.fullmatch(path.name)) and int(match[1]) <= last:
                self._labels.setdefault(int(match[1]), set()).add(match[2] or SAMPLES)

    def losses(self, record: LossRecord) -> None:
        begins = self._newest is None or record.epoch != self._newest.epoch
        self._newest = record
        self._history.add(record)
        if begins:
            self._write()

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._order = list(images)
        for label, image in images.items():
            save_png(image, self.web / _image_name(epoch, label))
            if label != SAMPLE_INPUTS:
                self._labels.setdefault(epoch, set()).add(label)
        self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        self.web.mkdir(parents=True, exist_ok=True)
        (self.web / "losses.svg").write_text(draw_losses(self._history.rows()), encoding="utf-8")
        page = Page(self.web, self.run)
        page.add_facts(self._state())
        page.add_link("../train_opt.txt", "all options")
        page.add_plot("losses.svg", "Loss curves")
        epochs = sorted(self._labels, reverse=True)
        self._add_samples(page, [epoch for epoch in epochs if SAMPLES in self._labels[epoch]])
        if epochs:
            page.add_header("Images of the training")
        for epoch in epochs:
            labels = sorted(self._labels[epoch] - {SAMPLES}, key=self._place)
            page.add_images(f"Epoch {epoch}", [_image_name(epoch, label) for label in labels], labels)
        page.save()

    def _add_samples(self, page: Page, epochs: Sequence[int]) -> None:
        """The same images in up to `MOST_STRIPS` epochs, evenly spaced from the newest to the first."""
        if not epochs:
            return
        page.add_header("The same images over time")
        page.add_strip("inputs", _image_name(0, SAMPLE_INPUTS))
        for index in np.linspace(0, len(epochs) - 1, min(len(epochs), MOST_STRIPS)).round().astype(int):
            page.add_strip(f"epoch {epochs[index]}", _image_name(epochs[index], SAMPLES))

    def _place(self, label: str) -> tuple[int, str]:
        """The model's order; labels it no longer shows follow by name."""
        return (self._order.index(label) if label in self._order else len(self._order)), label

    def _state(self) -> dict[str, str]:
        record, written = self._newest, {"written": time.strftime("%Y-%m-%d %H:%M")}
        if record is None:
            return written
        return {
            "epoch": f"{record.epoch} of {self.epochs}",
            "images": f"{record.images:,}",
            "learning rate": f"{record.lr:.3g}",
            "seconds per image": f"{record.seconds_per_image:.3f}",
            "time left": tqdm.format_interval(max(0, record.seconds_left(self.epochs))),
        } | written


def _image_name(epoch: int, label: str) -> str:
    if label == SAMPLE_INPUTS:
        return "samples/inputs.png"
    return f"samples/epoch{epoch:03d}.png" if label == SAMPLES else f"images/epoch{epoch:03d}_{label}.png"
