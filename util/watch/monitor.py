"""What a training run shows of itself: logs, loss curves, a page of images, and visdom where there is one.

Nothing here can stop a training: a disk that refuses costs one warning, a visdom server that is missing or
dies one more. In the run's folder it keeps `loss_log.txt`, `log.jsonl`, `web/index.html`, `web/losses.svg`
and `web/images/epochNNN_LABEL.png`.
"""

from __future__ import annotations

import re
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from util.images import save_png
from util.watch.html_page import HtmlPage
from util.watch.loss_log import LossLog, read_loss_records
from util.watch.loss_plot import LossHistory, draw_losses
from util.watch.visdom_client import VisdomClient

IMAGE_FILE = re.compile(r"epoch(\d+)_(.+)\.png")
FIRST_LABELS = ("real_A", "fake_B", "real_B", "idt_B")  # the order of a row; other labels follow by name


class Monitor:
    """Watches one run. Only the process that writes checkpoints has one.

    Args:
        folder: of the run, `checkpoints/NAME`.
        name: of the run, for titles.
        html: keep the web page (with its plot and images).
        visdom: where to show the run live; None: nowhere.
        display_winsize: width of an image on the page, in pixels.
        refresh: seconds after which the page loads itself anew; 0: never.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        *,
        html: bool = True,
        visdom: VisdomClient | None = None,
        display_winsize: int = 256,
        refresh: int = 0,
    ):
        self.folder, self.name, self.html, self.visdom = Path(folder), name, html, visdom
        self.display_winsize, self.refresh = display_winsize, refresh
        self.web = self.folder / "web"
        self._log = LossLog(self.folder)
        self._history = LossHistory()
        self._newest: dict[str, Any] = {}  # the fields of the last record of losses
        self._epoch = 0  # the running one; images of a later one are another run's
        self._labels: dict[int, set[str]] = {}  # epoch -> labels of its images in web/images
        self._warned = False
        if html:
            self._find_images()

    def losses(
        self,
        *,
        epoch: int,
        iters: int,
        images: int,
        losses: Mapping[str, float],
        seconds_per_image: float,
        data_seconds: float,
        lr: float,
        epoch_progress: float,
    ) -> None:
        """Log the losses of a moment.

        Args:
            epoch: number of the running epoch, from 1.
            iters: images seen in this epoch.
            images: images seen in the whole training.
            losses: name -> value, in the order to print.
            seconds_per_image: computing time.
            data_seconds: time spent waiting for data.
            lr: learning rate.
            epoch_progress: how much of this epoch is done, 0 to 1.
        """
        record = dict(
            epoch=epoch,
            iters=iters,
            images=images,
            epochs_done=epoch - 1 + epoch_progress,
            losses=dict(losses),
            seconds_per_image=seconds_per_image,
            data_seconds=data_seconds,
            lr=lr,
        )
        self._epoch = epoch
        self._newest = record
        self._history.add(record["epochs_done"], losses)
        with self._forgiving():
            self._log.losses(**record)
        self._show_losses()

    def images(self, epoch: int, images: Mapping[str, np.ndarray], save: bool) -> None:
        """Show images.

        Args:
            epoch: number of the running epoch, from 1.
            images: label -> (H, W, 3) uint8, not to be changed afterwards.
            save: also keep them as the images of this epoch, in place of earlier ones, and renew the page.
        """
        self._epoch = epoch
        if self.visdom:
            self.visdom.images(images, f"{self.name}: images of epoch {epoch}")
        if save and self.html:
            with self._forgiving():
                for label, image in images.items():
                    save_png(image, self.web / _image_name(epoch, label))
                    self._labels.setdefault(epoch, set()).add(label)
            self._write_page()

    def event(self, type: str, **fields: Any) -> None:
        """Write a record of another type to `log.jsonl`."""
        with self._forgiving():
            self._log.event(type, **fields)

    def epoch_end(self, epoch: int) -> None:
        """Draw plot and page anew."""
        self._epoch = epoch
        self._write_page()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs so that `load_state_dict` can go back to this moment."""
        return {"log": self._log.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to the moment of a checkpoint: what was logged later is dropped."""
        with self._forgiving():
            self._log.load_state_dict(state["log"])
            self._history = LossHistory()
            for record in read_loss_records(self.folder):
                self._history.add(record["epochs_done"], record["losses"])
                self._newest, self._epoch = record, record["epoch"]
        self._show_losses()

    def close(self, timeout: float = 5.0) -> None:
        """Write the page a last time and let visdom finish, for at most `timeout` seconds."""
        self._write_page()
        if self.visdom:
            self.visdom.close(timeout)

    def _show_losses(self) -> None:
        if self.visdom:
            self.visdom.losses(self._history.rows(), f"{self.name}: losses")

    def _write_page(self) -> None:
        """`web/losses.svg` and `web/index.html`: state, curves, the images of every epoch, newest first."""
        if not self.html:
            return
        with self._forgiving():
            self.web.mkdir(parents=True, exist_ok=True)
            (self.web / "losses.svg").write_text(draw_losses(self._history.rows()), encoding="utf-8")
            page = HtmlPage(self.web, self.name, self.refresh)
            page.add_facts(_facts(self._newest) | {"Written": time.strftime("%Y-%m-%d %H:%M")})
            # A loss that was not finite comes back from the log as None.
            losses = self._newest.get("losses", {})
            page.add_facts({name: "nan" if v is None else f"{v:.3f}" for name, v in losses.items()})
            page.add_plot("losses.svg", "Loss curves")
            epochs = sorted((epoch for epoch in self._labels if epoch <= self._epoch), reverse=True)
            if epochs:
                page.add_header("Images")
            for epoch in epochs:
                labels = sorted(self._labels[epoch], key=_label_order)
                files = [_image_name(epoch, label) for label in labels]
                page.add_images(f"Epoch {epoch}", files, labels, self.display_winsize)
            page.save()

    def _find_images(self) -> None:
        """Learn from the files of earlier sessions which images there are."""
        with self._forgiving():
            for path in self.web.glob("images/*.png"):
                if match := IMAGE_FILE.fullmatch(path.name):
                    self._labels.setdefault(int(match[1]), set()).add(match[2])

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Turn the first failure of the disk into a warning, and pass over later ones."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"cannot write the log or the page of this run ({error}); training goes on without",
                    RuntimeWarning,
                    stacklevel=4,
                )


def _image_name(epoch: int, label: str) -> str:
    return f"images/epoch{epoch:03d}_{label}.png"


def _label_order(label: str) -> tuple[int, str]:
    return (FIRST_LABELS.index(label) if label in FIRST_LABELS else len(FIRST_LABELS), label)


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    """The newest state of a run as the page shows it."""
    if not record:
        return {}
    return {
        "Epoch": str(record["epoch"]),
        "Images this epoch": f"{record['iters']:,}",
        "Images in all": f"{record['images']:,}",
        "Learning rate": f"{record['lr']:.3g}",
        "Seconds per image": f"{record['seconds_per_image']:.3f}",
    }


def create_monitor(opt: Namespace, folder: Path) -> Monitor:
    """The monitor of the run in `folder`, as the options ask for it."""
    visdom = None
    if opt.display_id is None or opt.display_id > 0:
        visdom = VisdomClient(
            opt.display_server,
            opt.display_port,
            opt.display_env,
            opt.display_id or 1,
            opt.display_ncols,
            opt.display_winsize,
        )
    return Monitor(folder, opt.name, html=not opt.no_html, visdom=visdom, display_winsize=opt.display_winsize)
