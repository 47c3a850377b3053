"""Live curves and images in a visdom server. Needs the package visdom."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import visdom

from util.images import image_grid
from util.watch.loss_log import LossRecord

logging.getLogger("visdom").setLevel(logging.CRITICAL)  # its notices would break the progress bar


class VisdomClient:
    """Shows one run in two windows: losses in `display_id`, images in `display_id + 1`; a `Watcher`.

    Args:
        ncols: images side by side in the window; 0: each image has a window.
    """

    live = True

    def __init__(self, run: str, server: str, port: int, env: str, display_id: int = 1, ncols: int = 4):
        self.name = f"visdom at {server}:{port} (--display_id 0 turns it off)"
        self.run, self.server, self.port, self.env = run, server, port, env
        self.display_id, self.ncols = display_id, ncols

    def begin(self, records: Sequence[LossRecord]) -> None:
        self._visdom = visdom.Visdom(
            self.server, port=self.port, env=self.env, raise_exceptions=True, use_incoming_socket=False
        )
        self._drawn = False
        if records:
            self._draw(records)

    def losses(self, record: LossRecord) -> None:
        self._draw([record])

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        images = {label: image for label, image in images.items() if not label.startswith("sample")}
        rows = [images] if self.ncols else [{label: image} for label, image in images.items()]
        for number, row in enumerate(rows, start=1):
            grid = image_grid(list(row.values()), self.ncols or 1)
            width = 256 * min(self.ncols or 1, len(row))
            opts = {"title": f"{self.run}: images of epoch {epoch}", "caption": " | ".join(row)}
            opts |= {"width": width, "height": width * grid.shape[0] // grid.shape[1]}
            self._visdom.image(grid.transpose(2, 0, 1), win=str(self.display_id + number), opts=opts)

    def close(self) -> None:
        pass

    def _draw(self, records: Sequence[LossRecord]) -> None:
        """The whole curves at first, later only their new points."""
        names = list(records[-1].losses)
        x = np.array([record.epochs_done for record in records])
        y = np.array([[record.losses.get(name) for name in names] for record in records], dtype=float)
        y[~np.isfinite(y)] = math.nan
        opts = {"title": f"{self.run}: losses", "legend": names, "xlabel": "epochs", "ylabel": "loss"}
        update = "append" if self._drawn else None
        self._visdom.line(y, x, win=str(self.display_id), opts=opts, update=update)
        self._drawn = True
