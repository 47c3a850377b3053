"""The saved options of what a command names: a run, a weights file or a pretrained model."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from models.weights import find_run
from util.arguments import ArgumentParser
from util.run.saved_options import read_saved_options


def results_folder(opt: Namespace, epoch: str) -> Path:
    """Where test.py writes the test set's translations by a checkpoint: results_dir/NAME/PHASE_EPOCH.

    Translations against the direction of training have a folder of their own, PHASE_EPOCH_DIRECTION.
    """
    ending = "" if opt.direction == opt.trained_direction else f"_{opt.direction}"
    return Path(opt.results_dir, opt.name, f"{opt.phase}_{epoch}{ending}")


def options_behind(name: str, checkpoints_dir: str, parser: ArgumentParser) -> dict[str, object]:
    """The options of what `load_generator` is given: a run, a weights file or a pretrained model; or {}."""
    folder = Path(name).parent if name.endswith(".pth") else find_run(name, checkpoints_dir)
    return read_saved_options(folder, parser.options) or {}
