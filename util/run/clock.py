"""How long a training step takes, and how much of it is waiting for data."""

from __future__ import annotations

import time


class Clock:
    """Seconds per image, waiting for data and in total, since the last call of `per_image`."""

    def __init__(self):
        self.begun = time.perf_counter()
        self._restart(self.begun)

    def _restart(self, now: float) -> None:
        self._since = self._step_began = now
        self._waited = 0.0
        self._images = 0

    def data_ready(self) -> None:
        """The next batch has arrived."""
        self._waited += time.perf_counter() - self._step_began

    def step_done(self, images: int) -> None:
        """A step on so many images is done (on a GPU: queued)."""
        self._images += images
        self._step_began = time.perf_counter()

    def per_image(self) -> tuple[float, float]:
        """(total, waiting for data), in seconds per image."""
        now, images = time.perf_counter(), max(self._images, 1)
        seconds, waited = (now - self._since) / images, self._waited / images
        self._restart(now)
        return seconds, waited

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.begun
