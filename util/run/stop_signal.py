"""Stopping on SIGINT and SIGTERM: the first asks the training to finish its step and save, the second exits at once."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType


class StopSignal:
    """Within its `with` block, `received` is the number of the signal that asked to stop, or 0.

    Under torchrun a second signal within a second counts as the first one: torchrun passes on what it is told to stop by, and
    a batch system may have told every process of the job already.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received = 0
        self._echo = 1.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0

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
            if time.monotonic() - self._since < self._echo:
                return
            os._exit(128 + number)  # a second signal means now
        self.received, self._since = number, time.monotonic()
        # os.write to stderr, since the signal may have come in the middle of a print
        os.write(2, b"\nStopping after this step; the run will be saved. Again: exit at once.\n")
