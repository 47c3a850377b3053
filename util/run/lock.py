"""One training per run folder: a lock that the system releases when its process ends, however it ends."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from util.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: runs go unlocked there
    fcntl = None


class RunLock:
    """Held from construction until `release` or the end of the process; UserError where another holds it.

    A POSIX record lock belongs to the process alone: unlike `flock`, forked loader workers do not keep it.
    The file names its holder, for the message of a refusal, and the job of the launcher that started it;
    `last_job` is the job it named before.
    """

    def __init__(self, folder: Path):
        self.path = folder / ".lock"
        self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the lock is held)
        self._file.seek(0)
        lines = self._file.read().splitlines()
        self.last_job = lines[1] if len(lines) > 1 else None
        try:
            if fcntl is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either for a lock that another holds
            self._file.close()
            holder = lines[0] if lines else "another process"
            raise UserError(f"the run in {folder} is being trained by {holder}: wait, or stop it") from None
        self._file.truncate(0)
        self._write(f"process {os.getpid()} on {socket.gethostname()}")

    def note_job(self, job: str) -> None:
        """Name the launcher's job, to distinguish its restart from another run."""
        self._write(job)

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def is_in_place(self) -> bool:
        """Whether the folder still has this lock: without it, it was moved or deleted."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def release(self) -> None:
        """Let others train in the folder."""
        self._file.close()


def is_held(folder: Path) -> bool:
    """Whether a process trains in the folder; always so on Windows, where runs go unlocked."""
    if fcntl is None:
        return True
    try:
        with open(folder / ".lock", "rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    return False
