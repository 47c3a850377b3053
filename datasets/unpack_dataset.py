"""Unpack a downloaded archive into a data set folder that appears whole or not at all.

    python datasets/unpack_dataset.py horse2zebra.zip datasets/horse2zebra [--folders trainA trainB ...]

The archive is unpacked into a hidden folder beside it, which is renamed once every checksum was right and the
image folders are there and not empty. Refused are archives that would write outside this folder or need more
room than there is. This needs the standard library only, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import errno
import re
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from util.errors import UserError, entry_point

FOLDERS = ("trainA", "trainB", "testA", "testB")
# What the archive modules raise for damaged and, zipfile, for encrypted archives; gzip and bz2 also OSError
# without a number.
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError)


def extract(archive: str | Path, folder: str | Path) -> None:
    """Unpack a zip or tar archive into `folder`.

    Raises:
        UserError: the archive is damaged or hostile.
        OSError: there is no room for it, or `folder` cannot be written.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with tarfile.open(archive) if tarfile.is_tarfile(archive) else zipfile.ZipFile(archive) as opened:
            _check_members(archive, opened)
            _check_room(opened, folder)
            if hasattr(tarfile, "data_filter"):
                opened.extraction_filter = tarfile.data_filter
            opened.extractall(folder)
            while isinstance(opened, tarfile.TarFile) and opened.fileobj.read(1 << 20):
                pass  # to the end, where gzip compares its checksum
    except DAMAGE as error:
        raise UserError(f"{archive} is not a whole zip or tar archive ({error}): download it again") from None
    except OSError as error:
        if error.errno is None:
            problem = f"{archive} is not a whole zip or tar archive ({error}): download it again"
            raise UserError(problem) from None
        raise


def _members(opened: zipfile.ZipFile | tarfile.TarFile) -> list:
    return opened.infolist() if isinstance(opened, zipfile.ZipFile) else opened.getmembers()


def _check_members(archive: Path, opened: zipfile.ZipFile | tarfile.TarFile) -> None:
    for member in _members(opened):
        if isinstance(member, zipfile.ZipInfo):
            name, is_link = member.filename, stat.S_ISLNK(member.external_attr >> 16)
        else:
            name, is_link = member.name, not (member.isfile() or member.isdir())
        path = PurePosixPath(name.replace("\\", "/"))
        if is_link:
            raise UserError(f"{archive}: {name!r} is a link or a device; not unpacked")
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", path.as_posix()):
            raise UserError(f"{archive}: {name!r} would be written outside the data set; not unpacked")


def _check_room(opened: zipfile.ZipFile | tarfile.TarFile, folder: Path) -> None:
    is_zip = isinstance(opened, zipfile.ZipFile)
    needed = sum(member.file_size if is_zip else member.size for member in _members(opened))
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        sizes = f"unpacked it has {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOSPC, sizes)


def find_data_set(root: Path, folders: Sequence[str]) -> Path:
    """`root`, or the folder directly in it, with all of `folders`, none empty; `UserError` without one."""
    candidates = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    for candidate in candidates:
        if all((candidate / folder).is_dir() for folder in folders):
            empty = [folder for folder in folders if not any((candidate / folder).iterdir())]
            if empty:
                raise UserError(f"the archive's folder {empty[0]} is empty")
            return candidate
    found = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*") if path.is_dir())
    listed = ", ".join(found or [path.name for path in candidates[1:]]) or "none"
    raise UserError(f"the archive lacks some of the folders {' '.join(folders)} (folders found: {listed})")


def unpack(archive: str | Path, out: str | Path, folders: Sequence[str] = FOLDERS) -> None:
    """`extract` an archive as `out`, which must not exist yet. On an error, nothing is left behind."""
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: move it away to unpack {archive} there")
    if not Path(archive).is_file():
        raise UserError(f"there is no archive {archive}")
    unpacking = out.parent / f".{out.name}.unpacking"
    shutil.rmtree(unpacking, ignore_errors=True)  # of a run that was killed
    try:
        extract(archive, unpacking / "all")
        find_data_set(unpacking / "all", folders).rename(out)
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)


@entry_point
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("archive", help="zip or tar file")
    parser.add_argument("out", help="folder to make")
    wanted = f"image folders the archive must hold (default: {' '.join(FOLDERS)})"
    parser.add_argument("--folders", nargs="+", default=FOLDERS, help=wanted)
    args = parser.parse_args(argv)
    try:
        unpack(args.archive, args.out, args.folders)
    except OSError as error:  # not status 2, which tells the download script to remove the archive
        problem = f"{args.out} cannot be written ({error})"
        print(f"error: {problem}: make room, or choose another folder", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
