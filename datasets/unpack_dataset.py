"""Unpack a downloaded archive into a data set folder that appears whole or not at all.

    python datasets/unpack_dataset.py horse2zebra.zip datasets/horse2zebra [--folders trainA trainB ...]

Everything is checked first: that the archive is whole (every checksum), that no member would land outside the
folder, and, after unpacking into a hidden neighbour, that the image folders are there and hold something. Only
then is the neighbour renamed. Standard library only, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import stat
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from util.errors import UserError, entry_point

FOLDERS = ("trainA", "trainB", "testA", "testB")


def check_archive(archive: Path) -> None:
    """Raise `UserError` unless `archive` is a whole zip file whose members all stay below where it is unpacked."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                path = PurePosixPath(member.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", path.as_posix()):
                    raise UserError(
                        f"{archive}: {member.filename!r} would land outside the data set; not unpacked"
                    )
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise UserError(f"{archive}: {member.filename!r} is a symbolic link; not unpacked")
            damaged = opened.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{archive} is not a whole zip archive ({error}): download it again") from error
    if damaged is not None:
        raise UserError(f"{archive} is damaged at {damaged}: download it again")


def find_data_set(root: Path, folders: tuple[str, ...]) -> Path:
    """`root` or the folder directly below it that holds all of `folders`, none of them empty. Or `UserError`."""
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


def unpack(archive: str | Path, out: str | Path, folders: tuple[str, ...] = FOLDERS) -> None:
    """Unpack `archive` as `out`, which must not exist yet. Raises `UserError`, and leaves nothing behind then."""
    archive, out = Path(archive), Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: move it away to unpack {archive} there")
    check_archive(archive)
    unpacking = out.parent / f".{out.name}.unpacking"
    shutil.rmtree(unpacking, ignore_errors=True)  # of a run that was killed
    try:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(unpacking / "all")
        find_data_set(unpacking / "all", tuple(folders)).rename(out)
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("archive", help="zip file")
    parser.add_argument("out", help="folder to make")
    parser.add_argument("--folders", nargs="+", default=FOLDERS, help="image folders the archive must hold")
    args = parser.parse_args(argv)
    unpack(args.archive, args.out, args.folders)


if __name__ == "__main__":
    sys.exit(main())
