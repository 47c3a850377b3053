"""One training per run folder: a lock that dies with its process, however that ends."""

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
    """Held from construction until `release` or the end of the process.

    A POSIX record lock belongs to the process alone: unlike `flock`, it is not kept alive by forked loader workers.

    Raises:
        UserError: another living process trains in this folder.
    """

    def __init__(self, folder: Path):
        self.path = folder / ".lock"
        self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the lock is held)
        if fcntl is None:
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(
                f"the run in {folder} is being trained by {holder}: wait for it, stop it, or choose another --name"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let others train in the folder."""
        self._file.close()
