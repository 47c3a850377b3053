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

IMAGE_FILE = re.compile(r"epoch(\d+)_(.+)\.png")


class TrainingPage:
    """Writes `index.html`, `losses.svg` and `images/epochNNN_LABEL.png` into `folder`/web; a `Watcher`.

    The page is written anew with each row of images, with the first losses of an epoch, and at the end.

    Args:
        folder: of the run, `checkpoints/NAME`.
        run: its name, the title.
        epochs: of the whole training, for "epoch 36 of 400" and the time left.
        options: the key options of the run, shown at the top.
        options_file: a file in `folder` with all options, to link to.
        winsize: width of an image on the screen, in pixels.
    """

    name, live = "the web page", False

    def __init__(
        self,
        folder: str | Path,
        run: str,
        *,
        epochs: int | None = None,
        options: Mapping[str, object] | None = None,
        options_file: str = "train_opt.txt",
        winsize: int = 256,
    ):
        self.folder, self.run, self.winsize = Path(folder), run, winsize
        self.web = self.folder / "web"
        self.epochs, self.options, self.options_file = epochs, options or {}, options_file
        self._history = LossHistory()
        self._newest: LossRecord | None = None
        self._epoch = 0  # the running one; images of a later one are another run's
        self._order: list[str] = []  # the labels as the model orders them
        self._labels: dict[int, set[str]] = {}  # epoch -> labels of its images in web/images
        for path in self.web.glob("images/*.png"):  # of earlier sessions
            if match := IMAGE_FILE.fullmatch(path.name):
                self._labels.setdefault(int(match[1]), set()).add(match[2])

    def resume(self, records: Sequence[LossRecord]) -> None:
        self._history = LossHistory(records)
        self._newest = records[-1] if records else None
        self._epoch = self._newest.epoch if self._newest else 0

    def losses(self, record: LossRecord) -> None:
        begins, self._newest, self._epoch = record.epoch != self._epoch, record, record.epoch
        self._history.add(record.epochs_done, record.losses)
        if begins:
            self._write()

    def images(self, epoch: int, images: Mapping[str, np.ndarray]) -> None:
        self._epoch, self._order = epoch, list(images)
        for label, image in images.items():
            save_png(image, self.web / _image_name(epoch, label))
            self._labels.setdefault(epoch, set()).add(label)
        self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        """Write plot and page: state, losses, options, curves, and images by epoch, newest first."""
        self.web.mkdir(parents=True, exist_ok=True)
        (self.web / "losses.svg").write_text(draw_losses(self._history.rows()), encoding="utf-8")
        page = Page(self.web, self.run)
        page.add_facts(self._state() | {"written": time.strftime("%Y-%m-%d %H:%M")})
        if self._newest:
            losses = self._newest.losses.items()
            page.add_facts({name: "nan" if value is None else f"{value:.3f}" for name, value in losses})
        page.add_facts({name: str(value) for name, value in self.options.items()})
        if (self.folder / self.options_file).is_file():
            page.add_link(f"../{self.options_file}", "all options")
        page.add_plot("losses.svg", "Loss curves")
        epochs = sorted((epoch for epoch in self._labels if epoch <= self._epoch), reverse=True)
        if epochs:
            page.add_header("Images")
        for epoch in epochs:
            labels = sorted(self._labels[epoch], key=self._place)
            files = [_image_name(epoch, label) for label in labels]
            page.add_images(f"Epoch {epoch}", files, labels, self.winsize)
        page.save()

    def _place(self, label: str) -> tuple[int, str]:
        """The model's order; labels it no longer shows follow by name."""
        return (self._order.index(label) if label in self._order else len(self._order)), label

    def _state(self) -> dict[str, str]:
        record = self._newest
        if record is None:
            return {}
        left = {}
        if self.epochs is not None:
            left = {"time left": tqdm.format_interval(max(0, record.seconds_left(self.epochs)))}
        return {
            "epoch": f"{record.epoch} of {self.epochs}" if self.epochs is not None else str(record.epoch),
            "images in this epoch": f"{record.iters:,}",
            "images in all": f"{record.images:,}",
            "learning rate": f"{record.lr:.3g}",
            "seconds per image": f"{record.seconds_per_image:.3f}",
            **left,
        }


def _image_name(epoch: int, label: str) -> str:
    return f"images/epoch{epoch:03d}_{label}.png"
