"""Writing a file so that a crash, a full disk or a power cut leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(
    path: Path, write: Callable[[Path], None], verify: Callable[[Path], None] = lambda path: None
) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, `verify` it, and put it in the place of `path`.

    Raises:
        OSError: writing or verifying failed; what was at `path` is still there, and nothing else is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        verify(temporary)
        os.replace(temporary, path)
    except RuntimeError as error:  # torch.save tells of a full disk so
        free = shutil.disk_usage(path.parent).free / 1e6
        found = str(error).splitlines()[0]
        raise OSError(
            f"{path.name} could not be written, with {free:.0f} MB free on its disk ({found})"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the new name itself must reach the disk too
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed process of `write_atomically` left in `folder`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def verify_archive(path: Path) -> None:
    """Read a file written by torch.save back from disk and check its checksums. OSError where they are wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile as error:
        raise OSError(f"{path.name} is damaged: {error}") from None
    if broken is not None:
        raise OSError(f"{path.name} is damaged: its checksum of {broken} is not that of what was written")
