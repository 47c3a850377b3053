"""Calls made by a thread of their own, so that a training never waits for a disk or a network."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

MOST_WAITING = (
    200  # calls; what a disk or a network does not take in time is left out, so memory stays bounded
)


class BackgroundCalls:
    """Makes the calls given to `put` in their order, in one thread. The first that raises ends it.

    Args:
        name: of the thread.
        most_waiting: calls that wait at any time; further ones are left out until the thread has caught up.
    """

    def __init__(self, name: str, most_waiting: int = MOST_WAITING):
        self.most_waiting = most_waiting
        self._changed = threading.Condition()  # guards the three below
        self._waiting: deque[Callable[[], object]] = deque()
        self._closing = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._make_all, name=name, daemon=True)
        self._thread.start()

    def put(self, call: Callable[[], object]) -> None:
        """Leave a call for the thread and return at once. Raises what an earlier call has raised."""
        with self._changed:
            if self._failure:
                raise self._failure
            if len(self._waiting) >= self.most_waiting:
                raise TimeoutError(f"{self.most_waiting} updates wait to be written, so some are left out")
            self._waiting.append(call)
            self._changed.notify_all()

    def close(self, timeout: float) -> None:
        """Make the calls that still wait, for at most `timeout` seconds. Raises as `put`, or TimeoutError."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._failure:
            raise self._failure
        if self._thread.is_alive():
            raise TimeoutError(f"the last updates were not written within {timeout:g} s")

    def _make_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                call = self._waiting.popleft()
            try:
                call()
            except Exception as error:  # of whatever library makes the call: it must not reach the training
                with self._changed:
                    self._failure = error
                    self._waiting.clear()
                return
