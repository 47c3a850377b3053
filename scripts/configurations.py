"""The options of a study, and the systems and presets that it takes by name, which are plain files."""

from __future__ import annotations

import shlex
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models import MODELS
from options.train_options import TrainOptions
from scripts.judging import add_judging
from util.arguments import ArgumentParser, gpu_list, integer, read_words, real_number

HERE = Path(__file__).parent
LINES = (shlex.split(line, comments=True) for line in (HERE / "systems.txt").read_text("utf-8").splitlines())
CONFIGS = {line[0]: tuple(line[1:]) for line in LINES if line}
DEFAULT = ("qs_global", "qs_local", "qs_local_global", "cut", "fastcut")
NEED_VGG = [name for name, words in CONFIGS.items() if "--model=sesim" in words]
PRESETS = {path.stem: path for path in (HERE / "presets").glob("*.txt")}

# Options of train.py that the study itself sets, as its own options or for each run.
SET_HERE = set(
    "name suffix checkpoints_dir dataroot seed model CUT_mode QS_mode continue_train overwrite dry_run "
    "gpu_ids n_epochs n_epochs_decay n_iterations n_iterations_decay epoch_count epoch pretrained_name "
    "lr_policy phase direction display_id".split()
)


def read_preset(name: str) -> list[str]:
    """The words for train.py in scripts/presets/NAME.txt."""
    return read_words(PRESETS[name])


def run_options(
    options: TrainOptions, config: Sequence[str], preset: Mapping[str, object], more: Mapping[str, object]
) -> dict[str, object]:
    """The options of a configuration: of a preset, its own, and `more`; the later ones override.

    The preset and `more` are for all configurations of a study. Options of theirs that have no effect in this
    one, such as --nce_layers on a model without a contrastive loss, are left out.
    """
    own = options.parser.parse_given(config)
    given = {**preset, **own, **more}
    model = MODELS[given.get("model", options.parser.defaults["model"])]
    values = {**options.parser.defaults, **model.defaults, **given}
    lacking = set(getattr(model, "lacking", ()))

    def acts(name: str) -> bool:
        conditions = options.parser.options[name].only or {}
        return name not in lacking and all(values[other] in of for other, of in conditions.items())

    return {name: value for name, value in given.items() if name in own or acts(name)}


class StudyOptions:
    """Parses the options of a study, with those that its script has declared in `parser` before.

    Args:
        parser: with the script's own options; `group` and `add` put further ones in the help.
        dataroot, seeds: defaults.
    """

    def __init__(self, parser: ArgumentParser, dataroot: str, seeds: str):
        self.parser = parser
        add, group = parser.add, parser.group
        group("data and runs")
        add("--dataroot", dataroot, "folder with trainA, trainB, testA, testB")
        add("--out", None, "folder of the study", type=Path, shown="results/study, results/DATA_ABLATION")
        add("--seeds", seeds, "list of seeds; every configuration is trained with each")
        presets = "networks, training and budget by name; options given count more"
        add("--preset", None, presets, choices=tuple(PRESETS))
        group("the budget of each run")
        add("--n_epochs", 200, "epochs at the initial learning rate", type=integer(0))
        add("--n_epochs_decay", 200, "epochs of decay to zero", type=integer(0))
        minutes = "training time instead, at a constant learning rate"
        add("--minutes", None, minutes, type=real_number(0, 1e6, above=True))
        group("how it is done")
        add("--gpu_ids", [0], "GPU to use; -1: CPU", type=gpu_list, shown="0")
        add("--jobs", 1, "trainings at a time, which share the cores and the GPU", type=integer(1, 256))
        add("--samples", 6, "test images on the page", type=integer(1, 10_000))
        group("how it is judged (see scripts/evaluate.py; always SWD, and stripes if the set has masks)")
        before = set(parser.defaults)
        add_judging(add)
        self.judging = [name for name in parser.defaults if name not in before]

    def parse(self, argv: Sequence[str]) -> Namespace:
        """The options, with `preset_options` and `train`, options of train.py by name, and `judging`."""
        words = list(argv)
        split = words.index("--") if "--" in words else len(words)
        given = self.parser.parse_given(words[:split])
        of_training = TrainOptions().parser
        preset = of_training.parse_given(read_preset(given["preset"])) if "preset" in given else {}
        budget = {name: preset.pop(name) for name in ("n_epochs", "n_epochs_decay") if name in preset}
        opt = Namespace(**{**self.parser.defaults, **budget, **given})
        opt.preset_options, opt.train = preset, of_training.parse_given(words[split + 1 :])
        opt.seeds = self.listed("--seeds", opt.seeds, integer(0, 2**32 - 1))
        opt.judging = {name: getattr(opt, name) for name in self.judging if getattr(opt, name) is not False}
        if opt.minutes and {"n_epochs", "n_epochs_decay"} & set(given):
            self.parser.error("--minutes and --n_epochs are two budgets: give one of them")
        for name in opt.train:
            if name in SET_HERE:
                self.parser.error(
                    f"--{name} after -- is set by the study itself: leave it out, or see --help"
                )
        return opt

    def listed(self, flag: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
        """The values of a list with commas."""
        try:
            values = [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ArgumentTypeError as error:
            self.parser.error(f"{flag} {text}: each {error}")
        if not values or len(set(values)) < len(values):
            self.parser.error(f"{flag} takes a list without repeats, not {text!r}")
        return values
