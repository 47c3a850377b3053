"""Lines for the people who watch a command: printed above progress bars, by the first process only."""

from __future__ import annotations

import contextlib
import warnings
from typing import TextIO

from tqdm import tqdm

from util import distributed


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line to `file` (default: stdout). Output that cannot be written does not stop a training."""
    if distributed.rank() == 0:
        with contextlib.suppress(OSError, ValueError):  # a closed pipe, a full disk; a closed stream
            tqdm.write(text, file=file)


def show_warnings_as_lines() -> None:
    """Show warnings as one line on stderr, without the line of code that they came from."""
    import sys

    def show(message: Warning | str, category: type[Warning], *where) -> None:
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show
