"""Errors that the user can correct, how every command of this project ends on one, in one line, and notes."""

import contextlib
import functools
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user can correct. Its message names the thing, what was found and what to do."""


def entry_point(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command's `main` to return an exit status, its own (None: 0) or that of an error.

    A `UserError`, a file that cannot be read or written and a lack of memory are one line on stderr and
    status 2; Ctrl-C is status 130. Characters that the terminal's code page lacks are written as escapes.
    """

    @functools.wraps(main)
    def run(*args, **kwargs) -> int:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(*args, **kwargs) or 0
        except BrokenPipeError:  # the reader of our output has closed it, as `head` does
            sys.stdout = None  # else Python's flush at exit would raise again
            return 1
        except KeyboardInterrupt:
            message, status = "interrupted", 130
        except (UserError, OSError) as error:
            message, status = f"error: {error}", 2
        except Exception as error:
            if not lacks_memory(error):
                raise
            reason = str(error).partition("\n")[0] or "Python found none"
            message, status = f"error: not enough memory ({reason}): use smaller images or batches", 2
        with contextlib.suppress(OSError, ValueError):  # stderr may be closed; the status still says it
            print(message, file=sys.stderr)
        return status

    return run


def lacks_memory(error: Exception) -> bool:
    """Whether the machine or its GPU has not enough memory for what was tried."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in ("DefaultCPUAllocator", "out of memory"))  # torch's
    return isinstance(error, MemoryError)


@functools.cache
def note_once(text: str) -> None:
    """Say something on stderr, in this process once."""
    print(f"note: {text}", file=sys.stderr)
