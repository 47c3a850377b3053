"""Small pictures and zip archives for the tests that download, unpack and prepare data sets."""

from __future__ import annotations

import zipfile
from pathlib import Path

from PIL import Image


def picture(path: Path, size: tuple[int, int] = (8, 8), colour=(10, 20, 30), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def zipped(folder: Path, path: Path) -> Path:
    """What `folder` holds, as an archive; member names begin with the folder's own."""
    return archive(
        path,
        {file.relative_to(folder.parent).as_posix(): file.read_bytes() for file in folder.rglob("*.*")},
    )
