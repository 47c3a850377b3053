"""The options of a run as its folder keeps them, `train_opt.json`."""

from __future__ import annotations

import json
import math
from pathlib import Path

from util.errors import UserError

FILE = "train_opt.json"


def saved_options(folder: Path) -> dict[str, object] | None:
    """The options saved by a run in `folder`, by name; None where there are none. UserError where they are unreadable."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        saved = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is no list of saved options ({error}): remove it, and give the options again"
        ) from None
    return {name: math.inf if value == "inf" else value for name, value in saved.items()}
