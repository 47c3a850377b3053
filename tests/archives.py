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


def flip_a_bit(path) -> None:
    """Flip one bit in the middle of the largest tensor of a torch.save file, as a bad disk or memory does."""
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    header = member.header_offset
    name, extra = (int.from_bytes(content[at : at + 2], "little") for at in (header + 26, header + 28))
    begin = header + 30 + name + extra
    content[begin + member.file_size // 2] ^= 1
    path.write_bytes(content)
