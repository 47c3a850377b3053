"""Stopping on SIGINT and SIGTERM: the first asks the training to finish its step and save, the second exits at once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


class StopSignal:
    """Within its `with` block, `received` is the number of the signal that asked to stop, or 0."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received = 0

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_status(self) -> int:
        """128 + signal number, as shells have it."""
        return 128 + self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)  # a second signal means now
        self.received = number
        # os.write, since the signal may have come in the middle of a print
        os.write(sys.stderr.fileno(), b"\nStopping after this step; the run will be saved. Again: exit at once.\n")
