"""Writing a file so that a crash, a full disk or a power cut leaves the old one or the new one, not half."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, flush it and move it there; OSError: the old one stays."""
    place = {"dir": path.parent, "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", **place) as folder:
        # One short name for all: torch.save writes it into the file, so that equal weights give equal files.
        temporary = Path(folder, "archive")
        try:
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        except RuntimeError as error:  # torch.save reports a full disk as RuntimeError
            free = shutil.disk_usage(path.parent).free / 1e6
            reason = str(error).splitlines()[0]
            raise OSError(f"{path.name} could not be written, with {free:.0f} MB free ({reason})") from error
        os.replace(temporary, path)
    if hasattr(os, "O_DIRECTORY"):  # the new name must reach the disk too
        opened = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process of `write_atomically` left in `folder`."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def verify_archive(path: Path) -> None:
    """Read a file written by torch.save back and check its checksums. Raises OSError if one is wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile as error:
        raise OSError(f"it is damaged: {error}") from None
    if broken is not None:
        raise OSError(f"it is damaged: its checksum of {broken} is not that of what was written")
