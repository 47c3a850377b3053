"""Stopping on a signal: the training finishes its step and saves; a second Ctrl-C exits at once."""

import contextlib
import os
import signal
import time
from types import FrameType

INSISTENT = (signal.SIGINT, signal.SIGTERM)
# Sent by a closed terminal, by SLURM before its time limit, and at the limit of CPU time (not on Windows).
WARNINGS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGXCPU") if hasattr(signal, name))
SIGNALS = (*INSISTENT, *WARNINGS)


class StopSignal:
    """Within its `with` block, `received` is the number of the signal that asked to stop, or 0.

    SIGINT (Ctrl-C) and SIGTERM ask to stop, and so do SIGHUP, SIGUSR1 and SIGXCPU unless they are ignored, as
    `nohup` ignores SIGHUP. A second SIGINT or SIGTERM exits at once, but not within a second, since one event
    may send several.
    """

    def __init__(self):
        self.received = 0

    def __enter__(self) -> "StopSignal":
        handled = [n for n in SIGNALS if n in INSISTENT or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if number in INSISTENT and time.monotonic() - self._since > 1.0:
                os._exit(128 + number)
            return
        self.received, self._since = number, time.monotonic()
        message = b"\nStopping after this step and saving. Ctrl-C again, a second later, exits at once.\n"
        with contextlib.suppress(OSError):  # the terminal may be gone; print may be what was interrupted
            os.write(2, message)
