"""Unpack a downloaded archive into a data set folder that appears whole or not at all.

    python datasets/unpack_dataset.py horse2zebra.zip datasets/horse2zebra [--folders trainA trainB ...]

Checked first: that every checksum is right and no member would be written outside the folder. The archive is
then unpacked into a hidden folder beside it, which is renamed once the image folders are there and not empty.
This needs the standard library only, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from util.errors import UserError, entry_point

FOLDERS = ("trainA", "trainB", "testA", "testB")
ENCRYPTED = 1  # bit of a member's flags
MAX_NAME = 255  # bytes of a file's name
DAMAGE = (zlib.error, EOFError, NotImplementedError)  # besides what the archive modules define


class Member(NamedTuple):
    """A file or folder in an archive; `problem` says why it must not be unpacked."""

    name: str
    is_dir: bool
    problem: str = ""


def check_archive(archive: Path) -> None:
    """Raise `UserError` unless `archive` is a whole zip or tar file whose members stay inside its target."""
    try:
        members = list(_tar_members(archive) if tarfile.is_tarfile(archive) else _zip_members(archive))
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, *DAMAGE) as error:
        raise UserError(
            f"{archive} is not a whole zip or tar archive ({error}): download it again"
        ) from error
    except OSError as error:
        raise UserError(f"{archive} cannot be read ({error.strerror}): give an archive") from error
    paths = [PurePosixPath(member.name.replace("\\", "/")) for member in members]
    files = {path for member, path in zip(members, paths, strict=True) if not member.is_dir}
    for (name, is_dir, problem), path in zip(members, paths, strict=True):
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", path.as_posix()):
            problem = "would be written outside the data set"
        elif max(map(len, map(os.fsencode, path.parts)), default=0) > MAX_NAME:
            problem = f"has a name of more than {MAX_NAME} bytes"
        elif not files.isdisjoint(path.parents) or (is_dir and path in files):
            problem = "would be in a folder that is also a file"
        if problem:
            raise UserError(f"{archive}: {name!r} {problem}; not unpacked")


def _zip_members(archive: Path) -> Iterator[Member]:
    """The members, and then a read of every byte."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            link, encrypted = stat.S_ISLNK(member.external_attr >> 16), member.flag_bits & ENCRYPTED
            problem = "is a symbolic link" if link else "is encrypted" if encrypted else ""
            yield Member(member.filename, member.is_dir(), problem)
            if problem:
                return
        damaged = opened.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"damaged at {damaged}")


def _tar_members(archive: Path) -> Iterator[Member]:
    """The members, and then a read of every byte."""
    with tarfile.open(archive) as opened:
        for member in opened:
            problem = "" if member.isfile() or member.isdir() else "is a link or a device"
            yield Member(member.name, member.isdir(), problem)
        while opened.fileobj.read(1 << 20):  # to the end, where gzip compares its checksum
            pass


def find_data_set(root: Path, folders: tuple[str, ...]) -> Path:
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


def unpack(archive: str | Path, out: str | Path, folders: tuple[str, ...] = FOLDERS) -> None:
    """Unpack `archive` as `out`, which must not exist yet. On an error, nothing is left behind.

    Raises:
        UserError: the archive cannot be used, or `out` exists.
        OSError: `out` cannot be written.
    """
    archive, out = Path(archive), Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: move it away to unpack {archive} there")
    check_archive(archive)
    unpacking = out.parent / f".{out.name}.unpacking"
    shutil.rmtree(unpacking, ignore_errors=True)  # of a run that was killed
    try:
        unpacking.mkdir(parents=True)
        with tarfile.open(archive) if tarfile.is_tarfile(archive) else zipfile.ZipFile(archive) as opened:
            if hasattr(tarfile, "data_filter"):
                opened.extraction_filter = tarfile.data_filter
            opened.extractall(unpacking / "all")
        find_data_set(unpacking / "all", tuple(folders)).rename(out)
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
