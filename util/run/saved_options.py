"""The options of a run as its folder keeps them, in `train_opt.json` and in the saved state."""

import json
import math
from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from util.arguments import Option, as_text
from util.errors import UserError
from util.files import write_atomically
from util.run.checkpoint import STATE_FILE

FILE = "train_opt.json"
RELEASED_FILE = "train_opt.txt"  # in the layout of the released code, for people


def saved_options(folder: Path) -> dict[str, object] | None:
    """The options saved by a run in `folder`, by name and unchecked; None if there are none."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        saved = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} holds no saved options ({error}): remove it, and give them again") from None
    return {name: math.inf if value == "inf" else value for name, value in saved.items()}


def checked(saved: Mapping[str, object], options: Mapping[str, Option], source: object) -> dict[str, object]:
    """The saved values of `options`, as typed, no others. UserError, naming `source`, for a wrong one."""
    kept = {n: value for n, value in saved.items() if n in options and options[n].scope != "call"}
    try:
        return {name: options[name].restored(value) for name, value in kept.items()}
    except ValueError as error:
        raise UserError(f"{error}, as saved in {source}: correct it, or use the code that saved it") from None


def read_saved_options(folder: Path, options: Mapping[str, Option]) -> dict[str, object]:
    """The checked options of a run in `folder`; {} if there are none."""
    return checked(saved_options(folder) or {}, options, folder / FILE)


def options_of_training(folder: Path, options: Mapping[str, Option]) -> dict[str, object]:
    """The options that the training in `folder` has saved: of its state, which are sure to be its own."""
    try:
        path = folder / STATE_FILE
        saved = dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["options"])
    except Exception:  # no file, an older one, or a damaged one, which resuming reports
        return read_saved_options(folder, options)
    return checked(saved, options, path)


def option_values(opt: Namespace) -> dict[str, object]:
    """The options by name, without what parsing adds, as JSON can hold them."""
    values = {name: value for name, value in vars(opt).items() if name != "given"}
    return {name: "inf" if value == math.inf else value for name, value in values.items()}


def options_text(opt: Namespace, defaults: Mapping[str, object]) -> str:
    """The options in the released layout, one a line, with the defaults of those that differ."""
    words = lambda value: ",".join(map(str, value)) if isinstance(value, list) else str(value)  # noqa: E731
    lines = ["----------------- Options ---------------"]
    for name, value in sorted(option_values(opt).items()):
        text, default = words(value), words(defaults.get(name, value))
        lines.append(f"{name:>25}: {text:<30}" + (f"\t[default: {default}]" if text != default else ""))
    return "\n".join([*lines, "----------------- End -------------------"])


def write_options(folder: Path, opt: Namespace, defaults: Mapping[str, object]) -> None:
    """Save the options: train_opt.txt in the released layout, and train_opt.json to be read back."""
    json_text = json.dumps(option_values(opt), indent=1, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {RELEASED_FILE: options_text(opt, defaults), FILE: json_text}.items():
        data = (text + "\n").encode("utf-8", "surrogateescape")  # paths may hold other bytes
        write_atomically(folder / name, lambda path, data=data: path.write_bytes(data))


def changed_options(
    folder: Path, opt: Namespace, options: Mapping[str, Option], scopes: Collection[str]
) -> list[str]:
    """One line for each option of `scopes` whose value in `opt` is not that of the training in `folder`."""
    saved = options_of_training(folder, options)
    return [
        f"{name}: {as_text(saved[name])} there, {as_text(getattr(opt, name))} now"
        for name in sorted(saved)
        if options[name].scope in scopes and saved[name] != getattr(opt, name)
    ]
