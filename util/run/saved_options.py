"""The options of a run as its folder keeps them, `train_opt.json`."""

from __future__ import annotations

import json
import math
from pathlib import Path

from util.errors import UserError

FILE = "train_opt.json"
ASIDE = (
    ".replaced"  # where --overwrite keeps the run before until the new one has saved: util/run/replaced.py
)


def saved_options(folder: Path) -> dict[str, object] | None:
    """The options saved by a run in `folder`, by name; None if there are none.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        path = folder / ASIDE / FILE  # --overwrite was killed while it moved files
    return read_options(path) if path.is_file() else None


def read_options(path: Path) -> dict[str, object]:
    """The options in a JSON file, by name. UserError if it holds none."""
    try:
        saved = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} holds no saved options ({error}): remove it, and give the options again"
        ) from None
    return {name: math.inf if value == "inf" else value for name, value in saved.items()}
