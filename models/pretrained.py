"""Trained generators that come with the code, to translate with before training anything.

`pretrained/NAME.pth` holds the weights in float16, `NAME.json` the options that build the network, and
`NAME.md` is the card: how it was trained, how it was judged, what it does badly. `scripts/export.py --format
pretrained` writes the first two of any run.
"""

from __future__ import annotations

import os
from pathlib import Path

from util.errors import UserError
from util.run.saved_options import read_options

FOLDER = Path(__file__).resolve().parent.parent / "pretrained"


def pretrained_names() -> list[str]:
    """The names of the models in `FOLDER`."""
    return sorted(path.stem for path in FOLDER.glob("*.pth"))


def pretrained_file(name: str | os.PathLike) -> Path:
    """The weights file of a model in `FOLDER`, or of a path that ends in .pth. UserError if there is none."""
    path = Path(name)
    if path.suffix != ".pth":
        path = FOLDER / f"{name}.pth"
    if not path.is_file():
        names = pretrained_names()
        there = f"there are {', '.join(names)}" if names else f"{FOLDER} has none"
        raise UserError(f"there is no pretrained model {name}: {there}; or give the path of a .pth file")
    return path


def pretrained_options(path: Path) -> dict[str, object] | None:
    """The options beside a weights file, by name; None without them. UserError if they cannot be read."""
    beside = path.with_suffix(".json")
    return read_options(beside) if path.suffix == ".pth" and beside.is_file() else None


def find_pretrained(name: str | os.PathLike, checkpoints_dir: str | os.PathLike) -> Path | None:
    """The file of a pretrained model that is named where runs are named too; None if that is no such model.

    Either the path of a weights file with options beside it, or a name in `FOLDER` that no run has.
    """
    path = Path(name)
    if path.suffix == ".pth":
        return path if pretrained_options(path) else None
    taken = (Path(checkpoints_dir) / path).is_dir()
    return None if taken or str(name) not in pretrained_names() else pretrained_file(name)
