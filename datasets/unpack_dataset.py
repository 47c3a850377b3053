"""Unpack a downloaded archive into a data set folder that appears whole or not at all.

    python datasets/unpack_dataset.py horse2zebra.zip datasets/horse2zebra [--folders trainA trainB ...]

This needs the standard library only, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from util.errors import UserError, entry_point

FOLDERS = ("trainA", "trainB", "testA", "testB")
# What the archive modules raise for damaged, hostile and, zipfile, for encrypted archives.
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError)


def extract(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into `folder`, nothing beside it. Raises `UserError` or OSError."""
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                _check_room(folder, sum(member.size for member in opened.getmembers()))
                opened.extractall(folder, filter="data")
        else:
            with zipfile.ZipFile(archive) as opened:
                _check_room(folder, sum(member.file_size for member in opened.infolist()))
                opened.extractall(folder)
    except DAMAGE as error:
        raise UserError(f"{archive} is not a whole zip or tar archive ({error}): download it again") from None


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"unpacked it has {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise UserError(f"{folder.parent} has too little room ({sizes}): make room, or choose another folder")


def find_data_set(root: Path, folders: Sequence[str]) -> Path:
    """`root`, or the folder directly in it, with all of `folders`; `UserError` without one."""
    for candidate in (root, *sorted(root.iterdir())):
        if all((candidate / folder).is_dir() for folder in folders):
            return candidate
    raise UserError(f"the archive lacks some of the folders {' '.join(folders)}")


def unpack(archive: str | Path, out: str | Path, folders: Sequence[str] = FOLDERS) -> None:
    """`extract` an archive as `out`, which must not exist yet. On an error, nothing is left behind."""
    archive, out = Path(archive), Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: move it away to unpack {archive} there")
    unpacking = out.parent / f".{out.name}.unpacking"
    shutil.rmtree(unpacking, ignore_errors=True)  # of a run that was killed
    unpacking.mkdir(parents=True)
    try:
        extract(archive, unpacking)
        find_data_set(unpacking, folders).rename(out)
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("archive", help="zip or tar file")
    parser.add_argument("out", help="folder to make")
    parser.add_argument(
        "--folders", nargs="+", default=FOLDERS, help=f"image folders in it (default: {' '.join(FOLDERS)})"
    )
    args = parser.parse_args(argv)
    unpack(args.archive, args.out, args.folders)


if __name__ == "__main__":
    sys.exit(main())
