"""Errors that are the user's to mend, and how an entry point ends on one.

A `UserError` names the thing, what was found and what to do. It never reaches the user as a traceback: every command of
this project is wrapped by `entry_point`, which prints it to stderr and exits with status 2.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A wrong call, a missing file, an impossible value: something the user can put right."""


def entry_point(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command's `main` so that it returns an exit status: 2 with the message for a `UserError`, else its own (None: 0)."""

    @functools.wraps(main)
    def run(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # whoever read our output has seen enough, as `head` has
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # nor must the interpreter's last flush complain
            return 1

    return run
