"""Live curves and images in a visdom server, which can neither stop nor slow the training.

The caller only leaves the newest content of a window in a slot; a thread of its own talks to the server. A
message carries a window whole, so a newer one takes the place of one not yet sent, nothing queues up, and a
server that was restarted shows the full curves again. A server that is missing, refuses, hangs or dies
costs one warning, given from the caller's thread at its next call; after that the thread tries again, more
and more rarely, and says no more.
"""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from urllib.parse import urlparse

import numpy as np
from PIL import Image

from util.watch.loss_plot import Row

TIMEOUT = (2.0, 5.0)  # seconds to connect, and to wait for an answer
REST = 2.0  # seconds between two messages, so that packing them takes no time from the training
FIRST_RETRY, LAST_RETRY = 15.0, 600.0  # seconds after a failure, doubled after each further one
PADDING = 4  # pixels around an image of the grid


class VisdomClient:
    """Keeps the windows of one run up to date: losses in window `display_id`, images in `display_id + 1`.

    Args:
        server: address with scheme, without port.
        port: of the server.
        env: visdom's environment.
        display_id: name of the first window, a number as in CUT.
        ncols: images side by side in the grid; 0: one window for each image.
        winsize: size of an image on the screen; larger ones are reduced to it.
    """

    def __init__(
        self,
        server: str = "http://localhost",
        port: int = 8097,
        env: str = "main",
        display_id: int = 1,
        ncols: int = 4,
        winsize: int = 256,
    ):
        self.server, self.port, self.env = server, port, env
        self.display_id, self.ncols, self.winsize = display_id, ncols, winsize
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: dict[str, Callable] = {}  # window -> what to send, the newest only
        self._closing = False
        self._failure: str | None = None
        self._warned = False
        # visdom is imported here, not in the thread: data loading forks processes, and an import under way in
        # another thread at that moment would stay locked in them.
        self._connect = _connector(server, port, env)
        self._thread: threading.Thread | None = None
        if self._connect is None:
            self._failure = "visdom cannot be imported (scripts/setup.sh installs it)"
        else:
            self._thread = threading.Thread(target=self._send_all, name="visdom", daemon=True)
            self._thread.start()

    def losses(self, rows: Sequence[Row], title: str) -> None:
        """Show loss curves: `rows` as from `LossHistory.rows()`, all of them each time. Returns at once."""
        self._put(str(self.display_id), partial(_send_losses, rows, title))

    def images(self, images: Mapping[str, np.ndarray], title: str) -> None:
        """Show images: label -> (H, W, 3) uint8, not to be changed afterwards. Returns at once."""
        if self.ncols > 0 and images:
            self._put(str(self.display_id + 1), partial(_send_grid, images, title, self.ncols, self.winsize))
            return
        for number, (label, image) in enumerate(images.items(), start=1):
            one = partial(_send_grid, {label: image}, title, 1, self.winsize)
            self._put(str(self.display_id + number), one)

    def close(self, timeout: float = 5.0) -> None:
        """Send what still waits, for at most `timeout` seconds, and end. Later calls do nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                self._fail("it does not answer")
        self._warn()

    def _put(self, window: str, send: Callable) -> None:
        """Leave `send(visdom, window)` for the thread, in place of an older one for the same window."""
        self._warn()
        if self._thread is None:
            return
        with self._changed:
            if not self._closing:
                self._waiting[window] = send
                self._changed.notify_all()

    def _send_all(self) -> None:
        """The thread: send one waiting window after another until told to close."""
        visdom, retry = None, FIRST_RETRY
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                window = next(iter(self._waiting))
                send = self._waiting.pop(window)
            try:
                visdom = visdom or self._connect()
                send(visdom, window)
            except Exception as error:  # whatever it is, it must not reach the training
                # A ConnectionError is the client's wrapping of what happened, whose name says enough.
                wrapped = isinstance(error, ConnectionError) and error.__context__
                self._fail(type(wrapped).__name__ if wrapped else repr(error))
                visdom, pause, retry = None, retry, min(2 * retry, LAST_RETRY)
                with self._changed:
                    if wrapped:  # worth another try, unless a newer one came meanwhile
                        self._waiting.setdefault(window, send)
                    if self._changed.wait_for(lambda: self._closing, pause):
                        return
            else:
                retry = FIRST_RETRY
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, REST)

    def _fail(self, reason: str) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = f"visdom at {self.server}:{self.port} cannot be reached ({reason})"

    def _warn(self) -> None:
        """Give the one warning, from the thread of the caller, where it cannot be lost."""
        if self._failure and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._failure}; training goes on, its logs are written. For live curves start "
                f"`python -m visdom.server -port {self.port}`; for none, and no warning, pass --display_id 0",
                RuntimeWarning,
                stacklevel=4,
            )


def _connector(server: str, port: int, env: str) -> Callable | None:
    """A function that connects and returns visdom's own client, or None where visdom cannot be imported."""
    try:
        import visdom
    except Exception:  # not installed, or broken by another package: the same to us
        return None
    logging.getLogger("visdom").setLevel(logging.CRITICAL)  # its notices would tear up the progress bar

    class Client(visdom.Visdom):
        """visdom's client with time limits, which its own requests do not have."""

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
    values = np.array(
        [[losses.get(name, math.nan) for name in names] for _, losses in rows]
    )  # (points, losses)
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
    fitted = []
    for image in images:
        picture = Image.fromarray(image)
        picture.thumbnail((winsize, winsize))
        fitted.append(np.asarray(picture))
    columns = min(ncols, len(fitted))
    height = max(image.shape[0] for image in fitted) + 2 * PADDING
    width = max(image.shape[1] for image in fitted) + 2 * PADDING
    grid = np.full((math.ceil(len(fitted) / columns) * height, columns * width, 3), 255, np.uint8)
    for number, image in enumerate(fitted):
        top = number // columns * height + PADDING
        left = number % columns * width + PADDING
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    return grid
