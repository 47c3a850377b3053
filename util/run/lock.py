"""One training per run folder: a lock that the system releases when its process ends, however it ends."""

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
    """

    def __init__(self, folder: Path):
        self.path = folder / ".lock"
        self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the lock is held)
        try:
            if fcntl is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either for a lock that another holds
            holder = self.path.read_text(encoding="utf-8").strip() or "another process"
            self._file.close()
            raise UserError(f"the run in {folder} is being trained by {holder}: wait, or stop it") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
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
    try:
        with open(folder / ".lock", "rb") as file:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:  # it is locked, or there is none
        return not isinstance(error, FileNotFoundError)
    return fcntl is None
