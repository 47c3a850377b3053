"""Trained generators that come with the code, to translate with before training anything.

`pretrained/NAME.pth` holds the weights in float16, `NAME.json` the options that build the network, and
`NAME.md` is the card: how it was trained, how it was judged, what it does badly. `scripts/export.py --format
pretrained` writes the first two of any run.
"""

from __future__ import annotations

import os
from pathlib import Path

from util.errors import UserError
from util.run.saved_options import read_options, saved_options

FOLDER = Path(__file__).resolve().parent.parent / "pretrained"
NEEDED = ("model", "direction", "input_nc", "output_nc", "crop_size")  # the others have defaults


def pretrained_names() -> list[str]:
    """The names of the models in `FOLDER`."""
    return sorted(path.stem for path in FOLDER.glob("*.pth") if path.is_file())


def pretrained_file(name: str) -> Path:
    """The weights file of a model: a name in `FOLDER`, or the path of a .pth file.

    Raises:
        UserError: there is no such file, or it is a checkpoint in the folder of a run.
    """
    path = Path(name)
    if path.suffix.lower() == ".pth":
        if not path.is_file():
            raise UserError(f"there is no weights file {path}: check the path")
        if saved_options(path.parent):
            raise UserError(
                f"{path} is a checkpoint of a run: give --name {path.parent.name} "
                f"--checkpoints_dir {path.parent.parent}"
            )
        return path
    names = pretrained_names()
    if name not in names:
        there = f"there are {', '.join(names)}" if names else f"{FOLDER} has none"
        raise UserError(f"there is no pretrained model {name}: {there}; or give the path of a .pth file")
    return FOLDER / f"{name}.pth"


def pretrained_options(path: Path) -> dict[str, object] | None:
    """The options beside a weights file, by name; None without them. UserError if they cannot be used."""
    beside = path.with_suffix(".json")
    if path.suffix.lower() != ".pth" or not beside.is_file():
        return None
    options = read_options(beside)
    if missing := [name for name in NEEDED if name not in options]:
        raise UserError(f"{beside} does not say {missing[0]}: write it anew with scripts/export.py")
    return options


def find_pretrained(
    name: str | os.PathLike, checkpoints_dir: str | os.PathLike, epoch: str | int = "latest"
) -> Path | None:
    """The file of a pretrained model that is named where runs are named too; None if it is none.

    Either the path of a weights file with options beside it, or a name in `FOLDER` that no run has.
    """
    path = Path(name)
    if path.suffix.lower() == ".pth":
        return path if pretrained_options(path) else None
    if epoch != "latest" or (Path(checkpoints_dir) / path).is_dir() or str(name) not in pretrained_names():
        return None
    return FOLDER / f"{name}.pth"
