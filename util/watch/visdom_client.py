"""Live curves and images in a visdom server. Needs the package visdom.

A message holds a window whole, so the newest is all that a server needs, even one that was restarted.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlparse

import numpy as np
import visdom

from util.images import image_grid
from util.watch.loss_log import LossRecord
from util.watch.loss_plot import LossHistory

REST = 2.0  # seconds between two messages for a window, so that packing them takes no time from the training

logging.getLogger("visdom").setLevel(logging.CRITICAL)  # its notices would break the progress bar


class Connection(visdom.Visdom):
    """visdom's client with time limits, which its requests lack."""

    def _handle_post(self, url, data=None):
        if urlparse(self.server).hostname in ("localhost", "127.0.0.1", "::1"):
            self.session.trust_env = False  # a proxy of the environment cannot reach this machine
        answer = self.session.post(url, data=data or {}, timeout=(2, 5))  # seconds to connect, to answer
        answer.raise_for_status()
        return answer.text


class VisdomClient:
    """Shows one run in two windows: losses in `display_id`, images in `display_id + 1`; a `Watcher`.

    Args:
        ncols: images side by side in the window; 0: each image has a window.
    """

    name, live = "visdom", True

    def __init__(self, run: str, server: str, port: int, env: str, display_id: int = 1, ncols: int = 4):
        self.run, self.server, self.port, self.env = run, server, port, env
        self.display_id, self.ncols = display_id, ncols

    def begin(self, records: Sequence[LossRecord]) -> None:
        self._history = LossHistory(records)
        self._visdom = None
        self._waiting: dict[int, tuple[str, dict]] = {}  # window -> its newest content, not yet sent
        self._sent: dict[int, float] = {}  # window -> when it was last sent
        self._put_losses()

    def losses(self, record: LossRecord) -> None:
        self._history.add(record.epochs_done, record.losses)
        self._put_losses()

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        images = {label: image for label, image in images.items() if not label.startswith("sample")}
        rows = [images] if self.ncols else [{label: image} for label, image in images.items()]
        for number, row in enumerate(rows, start=1):
            grid = image_grid(list(row.values()), self.ncols or 1)
            width = 256 * min(self.ncols or 1, len(row))
            opts = {"title": f"{self.run}: images of epoch {epoch}", "caption": " | ".join(row)}
            opts |= {"width": width, "height": width * grid.shape[0] // grid.shape[1]}
            self._put(self.display_id + number, "image", img=grid.transpose(2, 0, 1), opts=opts)  # (3, H, W)

    def close(self) -> None:
        self._send(rest=0.0)

    def _put_losses(self) -> None:
        rows = self._history.rows()
        if names := list(dict.fromkeys(name for _, losses in rows for name in losses)):
            opts = {"title": f"{self.run}: losses", "legend": names, "xlabel": "epochs", "ylabel": "loss"}
            x = np.array([epochs_done for epochs_done, _ in rows])
            y = np.array([[losses.get(name, math.nan) for name in names] for _, losses in rows])
            self._put(self.display_id, "line", X=x, Y=y, opts=opts)

    def _put(self, window: int, kind: str, **content) -> None:
        self._waiting[window] = (kind, content)
        self._send(REST)

    def _send(self, rest: float) -> None:
        """Send what waits to windows that were not sent to for `rest` seconds."""
        now = time.monotonic()
        settings = {"raise_exceptions": True, "use_incoming_socket": False}
        try:
            for window in list(self._waiting):
                if now - self._sent.get(window, -math.inf) >= rest:
                    if self._visdom is None:
                        self._visdom = Connection(self.server, port=self.port, env=self.env, **settings)
                    kind, content = self._waiting.pop(window)
                    getattr(self._visdom, kind)(win=str(window), **content)
                    self._sent[window] = time.monotonic()
        except Exception as error:
            # the client wraps what happened in a ConnectionError; the name of the cause says enough
            cause = type(error.__context__).__name__ if error.__context__ else repr(error)
            raise ConnectionError(
                f"{self.server}:{self.port} cannot be reached ({cause}). For live curves start `python -m "
                f"visdom.server -port {self.port}`; --display_id 0 turns them and this warning off"
            ) from error
