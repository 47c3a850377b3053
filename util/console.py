"""Output that cannot stop a training: lines above progress bars, and streams whose errors are ignored."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm

from util import distributed


class LastingStream:
    """A text stream whose reader may leave and whose disk may be full: what cannot be written is lost."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Inside, writing to stdout or stderr never raises, and warnings are one line each."""
    warnings.showwarning = lambda message, *where: tqdm.write(f"warning: {message}", file=sys.stderr)
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # else a checkpoint could get stderr's number
        pass
    os.close(number)
    before = {"stdout": sys.stdout, "stderr": sys.stderr}
    with open(os.devnull, "w") as nowhere:  # a stream is None where its file was closed before Python started
        try:
            for name, stream in before.items():
                setattr(sys, name, LastingStream(stream or nowhere))
            yield
        finally:
            for name, stream in before.items():
                try:
                    if stream is not None:
                        stream.flush()
                except (OSError, ValueError):
                    stream = None  # Python would fail to flush it at its exit
                setattr(sys, name, stream)


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line to `file` (default: stdout) above progress bars, at once, by the first process only."""
    if distributed.rank() == 0:
        file = sys.stdout if file is None else file
        tqdm.write(text, file=file)
        file.flush()  # a pipe or a log file would get it some thousand characters later
