"""The options of a run in its folder: written by training, read by what uses the run afterwards."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path

from models.weights import find_run, saved_weights
from util.arguments import ArgumentParser
from util.errors import UserError
from util.files import write_atomically
from util.run.checkpoint import STATE_FILE
from util.run.saved_options import FILE, saved_options


def run_folder(options: dict[str, object]) -> Path:
    """The folder of the run that options name: checkpoints_dir / (name + suffix).

    Raises:
        UserError: that is no name of a folder below checkpoints_dir.
    """
    name = str(options["name"])
    if options.get("suffix"):
        name += f"_{options['suffix']}"
    if not name or Path(name).is_absolute() or {".", ".."} & set(name.split("/")):
        raise UserError(
            f"--name {name!r} is no name of a folder under --checkpoints_dir: give one such as horses_global"
        )
    return Path(str(options["checkpoints_dir"])) / name


def results_folder(opt: Namespace, epoch: str) -> Path:
    """Where test.py writes the test set's translations by a checkpoint: results_dir/NAME/PHASE_EPOCH.

    Translations against the direction of training have a folder of their own, PHASE_EPOCH_DIRECTION.
    """
    ending = "" if opt.direction == opt.trained_direction else f"_{opt.direction}"
    return Path(opt.results_dir, opt.name, f"{opt.phase}_{epoch}{ending}")


def option_values(opt: Namespace) -> dict[str, object]:
    """The options by name, without what parsing adds, as JSON can hold them."""
    values = {name: value for name, value in vars(opt).items() if name != "given"}
    return {name: "inf" if value == math.inf else value for name, value in values.items()}


def read_saved_options(folder: Path, parser: ArgumentParser) -> dict[str, object] | None:
    """The options saved by a run: of train_opt.json, else of the released code's train_opt.txt, or None."""
    if (saved := saved_options(folder)) is not None:
        return saved
    path = folder / "train_opt.txt"
    if not path.is_file():
        return None
    lines = [line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line]
    words = {name.strip(): value.split("\t")[0].strip() for name, value in lines}
    known = parser.defaults.keys() - {"gpu_ids"}  # of the machine it ran on, and perhaps several
    argv = [
        f"--{name}={value}" for name, value in words.items() if name in known and value not in ("", "None")
    ]
    return parser.parse_given(argv)


def options_behind(name: str, checkpoints_dir: str, parser: ArgumentParser) -> dict[str, object]:
    """The options of what `load_generator` is given: a run, a weights file or a pretrained model; or {}."""
    folder = Path(name).parent if name.endswith(".pth") else find_run(name, checkpoints_dir)
    return read_saved_options(folder, parser) or {}


def write_options(folder: Path, opt: Namespace, defaults: dict[str, object]) -> None:
    """Save the options: train_opt.txt in the released layout, and train_opt.json to be read back."""
    values = option_values(opt)
    lines = ["----------------- Options ---------------"]
    for name, value in sorted(values.items()):
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        default = defaults.get(name, value)
        default = ",".join(map(str, default)) if isinstance(default, list) else str(default)
        lines.append(f"{name:>25}: {text:<30}" + (f"\t[default: {default}]" if text != default else ""))
    lines.append("----------------- End -------------------")
    texts = {
        "train_opt.txt": "\n".join(lines),
        FILE: json.dumps(values, indent=1, sort_keys=True),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():  # paths in it may hold bytes that are no UTF-8
        data = (text + "\n").encode("utf-8", "surrogateescape")
        write_atomically(folder / name, lambda path, data=data: path.write_bytes(data))


def holds_run(folder: Path) -> bool:
    """Whether a run in `folder` has saved anything that could be continued or translated with."""
    return (folder / STATE_FILE).exists() or bool(saved_weights(folder))


def changed_options(
    opt: Namespace, folder: Path, parser: ArgumentParser, of_the_call: Collection[str]
) -> list[str]:
    """One line per option whose value differs from that saved in `folder`, except options `of_the_call`."""
    saved = read_saved_options(folder, parser) or {}
    before, now = option_values(Namespace(**saved)), option_values(opt)
    return [
        f"{name}: {before[name]} there, {now[name]} now"
        for name in sorted(parser.defaults)
        if name in before and name not in of_the_call and str(before[name]) != str(now[name])
    ]


def refuse_another_run(
    opt: Namespace, folder: Path, parser: ArgumentParser, of_the_call: Collection[str]
) -> None:
    """UserError if a fresh start would replace an earlier run in `folder`, unless --overwrite allows it.

    Args:
        of_the_call: options that belong to one call and not to the run.
    """
    if opt.overwrite or not holds_run(folder):
        return
    differing = changed_options(opt, folder, parser, of_the_call)
    difference = "\nIts options differ:\n  " + "\n  ".join(differing) if differing else ""
    raise UserError(
        f"there is a run in {folder} already: give --continue_train to continue it, another --name to keep "
        f"both, or --overwrite to replace it by a new one{difference}"
    )
