"""The saved options of what a command names: a run, a weights file or a pretrained model."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from models.inference import find_run, pretrained_run
from util.arguments import ArgumentParser
from util.run.saved_options import read_saved_options


def results_folder(opt: Namespace, epoch: str) -> Path:
    """Where test.py writes the test set's translations by a checkpoint: results_dir/NAME/PHASE_EPOCH.

    Translations against the direction of training have a folder of their own, PHASE_EPOCH_DIRECTION.
    """
    ending = "" if opt.direction == opt.trained_direction else f"_{opt.direction}"
    return Path(opt.results_dir, opt.name, f"{opt.phase}_{epoch}{ending}")


def place_of_pretrained(name: str) -> dict[str, str]:
    """--checkpoints_dir and --name of the run that a pretrained model is; it is fetched if need be."""
    folder = pretrained_run(name)
    return {"checkpoints_dir": str(folder.parent.parent), "name": f"{folder.parent.name}/{folder.name}"}


def take_pretrained(parser: ArgumentParser, opt: Namespace) -> None:
    """Let --pretrained NAME, where it is given, name what --name names else."""
    if opt.pretrained and opt.name:
        parser.error("--name names a run, and --pretrained a model instead: leave one of them out")
    if opt.pretrained:
        vars(opt).update(place_of_pretrained(opt.pretrained))


def options_behind(name: str, checkpoints_dir: str, parser: ArgumentParser) -> dict[str, object]:
    """The options of what `load_generator` is given: a run, a weights file or a pretrained model; or {}."""
    folder = Path(name).parent if name.endswith((".pth", ".safetensors")) else find_run(name, checkpoints_dir)
    return read_saved_options(folder, parser.options) or {}
