"""Errors that the user can correct, and how a command ends on one.

A `UserError` names the thing, what was found and what to do. Every command of this project is wrapped by
`entry_point`, which prints it to stderr and exits with status 2, without a traceback.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A wrong call, a missing file, an impossible value: something the user can correct."""


def entry_point(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command's `main` to return an exit status: 2 for a `UserError`, else its own (None: 0)."""

    @functools.wraps(main)
    def run(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            with contextlib.suppress(OSError, ValueError):  # stderr may be closed; the status still says it
                print(f"error: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # the reader of our output has closed it, as `head` does
            # Keep Python's flush at exit from raising again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1

    return run
