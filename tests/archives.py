"""Damage to files of torch.save."""

import zipfile
from pathlib import Path


def flip_a_bit(path: Path) -> None:
    """Flip one bit in the middle of the largest tensor of a torch.save file, as a bad disk or memory does."""
    with zipfile.ZipFile(path) as archive:
        largest = archive.read(max(archive.infolist(), key=lambda info: info.file_size))
    content = bytearray(path.read_bytes())
    content[content.index(largest) + len(largest) // 2] ^= 1
    path.write_bytes(content)
