"""Run a program with its output in a log file, until it ends, is asked to stop or runs out of time."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from util.run.stop_signal import StopSignal


def run_command(
    words: Sequence[str],
    log: Path,
    stop: StopSignal,
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, bool]:
    """Run `words` to the end; on `stop` or after `limit` seconds send SIGTERM once, and wait for the end.

    The command and its output are appended to `log`. Returns the exit status, negative for the signal that
    killed the program, and whether it ran out of time.
    """
    began, out_of_time, asked = time.monotonic(), False, False
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n$ {shlex.join(words)}\n")
        file.flush()
        # In a session of its own: Ctrl-C in the terminal reaches it only once, from here.
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=0.2), out_of_time
            out_of_time = out_of_time or (limit is not None and time.monotonic() - began > limit)
            if not asked and (stop.received or out_of_time):
                process.terminate()
                asked = True
