"""The options of a run as its folder keeps them, in `train_opt.json` and in the saved state."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path

from util.arguments import Option, as_text
from util.errors import UserError
from util.files import write_atomically

FILE = "train_opt.json"
RELEASED_FILE = "train_opt.txt"  # in the layout of the released code, for people


def saved_options(folder: Path) -> dict[str, object] | None:
    """The options saved by a run in `folder`, by name and unchecked; None if there are none."""
    path = folder / FILE
    return read_options(path) if path.is_file() else None


def read_options(path: Path) -> dict[str, object]:
    """The options in a JSON file, by name and unchecked. UserError if it holds none."""
    try:
        saved = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} holds no saved options ({error}): remove it, and give them again") from None
    return {name: math.inf if value == "inf" else value for name, value in saved.items()}


def checked(saved: Mapping[str, object], options: Mapping[str, Option], source: object) -> dict[str, object]:
    """The saved values of `options`, as the command line would have given them; others are left out.

    Args:
        source: where they were saved, for the message.

    Raises:
        UserError: a value that the command line would refuse.
    """
    values = {}
    for name, value in saved.items():
        if name in options and options[name].scope != "call":
            try:
                values[name] = options[name].restored(value)
            except ValueError as error:
                found = f"--{name}, as saved in {source}, cannot be used ({error})"
                raise UserError(f"{found}: correct it there, or remove the file") from None
    return values


def read_saved_options(folder: Path, options: Mapping[str, Option]) -> dict[str, object] | None:
    """The checked options of a run in `folder`; None if there are none."""
    saved = saved_options(folder)
    return None if saved is None else checked(saved, options, folder / FILE)


def option_values(opt: Namespace) -> dict[str, object]:
    """The options by name, without what parsing adds, as JSON can hold them."""
    values = {name: value for name, value in vars(opt).items() if name != "given"}
    return {name: "inf" if value == math.inf else value for name, value in values.items()}


def write_options(folder: Path, opt: Namespace, defaults: Mapping[str, object]) -> None:
    """Save the options: train_opt.txt in the released layout, and train_opt.json to be read back."""
    values = option_values(opt)
    lines = ["----------------- Options ---------------"]
    for name, value in sorted(values.items()):
        text, default = _as_words(value), _as_words(defaults.get(name, value))
        lines.append(f"{name:>25}: {text:<30}" + (f"\t[default: {default}]" if text != default else ""))
    lines.append("----------------- End -------------------")
    texts = {RELEASED_FILE: "\n".join(lines), FILE: json.dumps(values, indent=1, sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():  # paths in it may hold bytes that are no UTF-8
        data = (text + "\n").encode("utf-8", "surrogateescape")
        write_atomically(folder / name, lambda path, data=data: path.write_bytes(data))


def _as_words(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def changed_options(
    saved: Mapping[str, object], opt: Namespace, options: Mapping[str, Option], scopes: Collection[str]
) -> list[str]:
    """One line for each option of `scopes` whose value in `opt` is not the one in `saved`."""
    return [
        f"{name}: {as_text(saved[name])} there, {as_text(getattr(opt, name))} now"
        for name in sorted(saved)
        if options[name].scope in scopes and saved[name] != getattr(opt, name)
    ]
