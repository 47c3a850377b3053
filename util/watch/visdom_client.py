"""Live curves and images in a visdom server, which can neither stop nor slow the training.

Calls only leave the newest content of a window in a slot; a thread of its own talks to the server. A message
holds a window whole, so a newer one replaces one not yet sent, nothing queues up, and a server that was
restarted shows the full curves again. After a failure the thread tries again, less and less often, and the
next call raises.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from urllib.parse import urlparse

import numpy as np
from PIL import Image

from util.watch.loss_log import LossRecord
from util.watch.loss_plot import LossHistory, Row

TIMEOUT = (2.0, 5.0)  # seconds to connect, and to wait for an answer
REST = 2.0  # seconds between two messages, so that packing them takes no time from the training
FIRST_RETRY, LAST_RETRY = 15.0, 600.0  # seconds after a failure, doubled after each further one
PADDING = 4  # pixels around an image of the grid


class VisdomClient:
    """Shows one run in two windows: losses in `display_id`, images in `display_id + 1`; a `Watcher`.

    Calls return at once. They raise ConnectionError after the server could not be reached.

    Args:
        run: its name, for titles.
        server: address with scheme, without port.
        port: of the server.
        env: visdom's environment.
        display_id: name of the first window, a number as in CUT.
        ncols: images side by side in the grid; 0: one window per image.
        winsize: size of an image on the screen; larger ones are reduced to it.
    """

    name, live = "visdom", True

    def __init__(
        self,
        run: str,
        server: str = "http://localhost",
        port: int = 8097,
        env: str = "main",
        display_id: int = 1,
        ncols: int = 4,
        winsize: int = 256,
    ):
        self.run, self.server, self.port = run, server, port
        self.display_id, self.ncols, self.winsize = display_id, ncols, winsize
        self._history = LossHistory()
        self._changed = threading.Condition()  # guards the three below
        self._waiting: dict[str, Callable] = {}  # window -> what to send, the newest only
        self._closing = False
        self._failure = ""
        # Imported here, not in the thread: the loader forks workers, in which an import that is under way in
        # another thread stays locked.
        self._connect = _connector(server, port, env)
        self._thread = threading.Thread(target=self._send_all, name="visdom", daemon=True)
        if self._connect is None:
            self._failure = "it cannot be imported (scripts/setup.sh installs it)"
        else:
            self._thread.start()

    def resume(self, records: Sequence[LossRecord]) -> None:
        self._history = LossHistory(records)
        self._put_losses()

    def losses(self, record: LossRecord) -> None:
        self._history.add(record.epochs_done, record.losses)
        self._put_losses()

    def images(self, epoch: int, images: Mapping[str, np.ndarray]) -> None:
        title = f"{self.run}: images of epoch {epoch}"
        grids = [images] if self.ncols and images else [{label: image} for label, image in images.items()]
        for number, grid in enumerate(grids, start=1):
            send = partial(_send_grid, grid, title, self.ncols or 1, self.winsize)
            self._put(str(self.display_id + number), send)

    def close(self, timeout: float = 5.0) -> None:
        """Send what still waits, for at most `timeout` seconds, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._connect is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                self._fail("it does not answer")
        self._raise_failure()

    def _put_losses(self) -> None:
        self._put(str(self.display_id), partial(_send_losses, self._history.rows(), f"{self.run}: losses"))

    def _put(self, window: str, send: Callable) -> None:
        """Leave `send(visdom, window)` for the thread, in place of an older one for the same window."""
        with self._changed:
            self._waiting[window] = send
            self._changed.notify_all()
        self._raise_failure()

    def _send_all(self) -> None:
        """The thread: send one waiting window after another until closed."""
        visdom, retry = None, FIRST_RETRY
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                window = next(iter(self._waiting))
                send = self._waiting.pop(window)
            pause, failed = REST, False
            try:
                visdom = visdom or self._connect()
                send(visdom, window)
                retry = FIRST_RETRY
            except Exception as error:  # whatever it is, it must not reach the training
                # The client wraps what happened in a ConnectionError; the name of the cause says enough.
                wrapped = isinstance(error, ConnectionError) and error.__context__
                self._fail(type(wrapped).__name__ if wrapped else repr(error))
                visdom, failed, pause, retry = None, True, retry, min(2 * retry, LAST_RETRY)
            with self._changed:
                if failed:
                    self._waiting.setdefault(window, send)  # unless a newer one came meanwhile
                if self._changed.wait_for(lambda: self._closing, pause) and failed:
                    return

    def _fail(self, reason: str) -> None:
        with self._changed:
            self._failure = self._failure or (
                f"{self.server}:{self.port} cannot be reached ({reason}). For live curves start "
                f"`python -m visdom.server -port {self.port}`; --display_id 0 turns them and this warning off"
            )

    def _raise_failure(self) -> None:
        if self._failure:
            raise ConnectionError(self._failure)


def _connector(server: str, port: int, env: str) -> Callable | None:
    """A function that connects and returns visdom's own client; None if visdom cannot be imported."""
    try:
        import visdom
    except Exception:  # not installed, or broken by another package
        return None
    logging.getLogger("visdom").setLevel(logging.CRITICAL)  # its notices would break the progress bar

    class Client(visdom.Visdom):
        """visdom's client with time limits, which its requests lack."""

        def _handle_post(self, url, data=None):
            if urlparse(self.server).hostname in ("localhost", "127.0.0.1", "::1"):
                self.session.trust_env = False  # a proxy of the environment cannot reach this machine
            answer = self.session.post(url, data=data or {}, timeout=TIMEOUT)
            answer.raise_for_status()
            return answer.text

    return lambda: Client(server=server, port=port, env=env, raise_exceptions=True, use_incoming_socket=False)


def _send_losses(rows: Sequence[Row], title: str, visdom, window: str) -> None:
    names = list(dict.fromkeys(name for _, losses in rows for name in losses))
    if not names:
        return
    # (points, losses)
    values = np.array([[losses.get(name, math.nan) for name in names] for _, losses in rows])
    opts = {"title": title, "legend": names, "xlabel": "epochs", "ylabel": "loss"}
    visdom.line(Y=values, X=np.array([epochs_done for epochs_done, _ in rows]), win=window, opts=opts)


def _send_grid(
    images: Mapping[str, np.ndarray], title: str, ncols: int, winsize: int, visdom, window: str
) -> None:
    grid = image_grid(list(images.values()), ncols, winsize)
    width = min(ncols, len(images)) * winsize
    opts = {
        "title": title,
        "caption": " | ".join(images),
        "width": width,
        "height": width * grid.shape[0] // grid.shape[1],
    }
    visdom.image(grid.transpose(2, 0, 1), win=window, opts=opts)  # (3, H, W)


def image_grid(images: Sequence[np.ndarray], ncols: int, winsize: int) -> np.ndarray:
    """Images row by row on white, in cells of the largest one; those larger than `winsize` are reduced to it.

    Args:
        images: at least one (H, W, 3) uint8, of any sizes.

    Returns:
        (H, W, 3) uint8.
    """
    pictures = [Image.fromarray(image) for image in images]
    for picture in pictures:
        picture.thumbnail((winsize, winsize))
    columns = min(ncols, len(pictures))
    width, height = (max(picture.size[axis] for picture in pictures) + 2 * PADDING for axis in (0, 1))
    grid = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        grid.paste(picture, (column * width + PADDING, row * height + PADDING))
    return np.asarray(grid)
