"""Train several configurations with several seeds under one budget, judge all alike, and write one page.

    python scripts/compare.py --dataroot datasets/stripes --out results/study --n_epochs 10
    python scripts/compare.py --configs qs_global,cut --queries 64,256 --seeds 0,1,2 -- --ngf 16

What follows -- goes to train.py, the same for every run. The budget is a number of epochs, or with --minutes
the training time of each run. OUT/index.html is the page, OUT/study.json holds all its numbers. The same
command again continues what was interrupted and repeats nothing that is done. A run that fails is reported;
the others go on.
"""

from __future__ import annotations

import importlib.util
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from options.train_options import TrainOptions
from scripts.study.study import CONFIGS, Study
from util.arguments import ArgumentParser, gpu_list, integer, real_number
from util.errors import UserError, entry_point
from util.run.stop_signal import StopSignal

# Options of train.py that the study itself sets.
SET_HERE = set(
    "name suffix checkpoints_dir dataroot seed model CUT_mode QS_mode continue_train overwrite dry_run "
    "gpu_ids n_epochs n_epochs_decay epoch_count epoch pretrained_name lr_policy phase direction "
    "display_id".split()
)


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Run the study that a command line describes; exit status 1 if a run failed."""
    opt = parse(sys.argv[1:] if argv is None else argv)
    for library in ("matplotlib", "dominate"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"the page needs {library}, which is not installed: pip install {library}")
    study = Study(opt)
    with StopSignal() as stop:
        failures = study.work(stop)
        if stop.received:
            study.say("Stopped. The same command continues from here.")
            return stop.exit_status
    study.report(failures)
    for name, failure in failures.items():
        print(f"failed: {name}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def parse(argv: Sequence[str]) -> Namespace:
    """The study's options, with `train` (words for train.py). A wrong call exits with status 2."""
    words = list(argv)
    split = words.index("--") if "--" in words else len(words)
    parser = ArgumentParser(prog="scripts/compare.py", description=__doc__.splitlines()[0])
    add, group = parser.add, parser.group
    group("what is compared")
    add("--dataroot", "./datasets/stripes", "folder with trainA, trainB, testA, testB")
    add("--out", Path("results/study"), "folder of the study", type=Path)
    add("--configs", ",".join(CONFIGS), "list of configurations")
    add("--seeds", "0,1,2", "list of seeds; every configuration is trained with each")
    add("--queries", None, "list of --num_patches to try with every configuration", shown="train.py's own")
    group("the budget of each run")
    add("--n_epochs", 200, "epochs at the initial learning rate", type=integer(0))
    add("--n_epochs_decay", 200, "epochs of decay to zero", type=integer(0))
    add(
        "--minutes",
        None,
        "training time instead, at a constant learning rate",
        type=real_number(0, above=True),
    )
    group("how it is done")
    add("--gpu_ids", [0], "GPU to use; -1: CPU", type=gpu_list, shown="0")
    add("--jobs", 1, "trainings at a time", type=integer(1))
    add("--samples", 6, "test images on the page", type=integer(1))
    group("how it is judged (see scripts/evaluate.py; always SWD, and stripes if the set has masks)")
    add("--inception_weights", None, "pytorch-fid's weights file, for FID and KID")
    add("--classifier", "squeezenet1_1", "a torchvision classifier, for its distances")
    add("--classifier_weights", None, "its weights file")
    add("--class_index", None, "a class of it, from 0", type=integer(0))
    given = parser.parse_given(words[:split])
    opt = Namespace(**{**parser.defaults, **given}, train=words[split + 1 :])
    opt.configs = _listed(parser, "--configs", opt.configs, str)
    opt.seeds = _listed(parser, "--seeds", opt.seeds, integer(0))
    opt.queries = _listed(parser, "--queries", opt.queries, integer(1)) if opt.queries else [None]
    for config in opt.configs:
        if config not in CONFIGS:
            parser.error(f"--configs {config} is unknown; there are {', '.join(CONFIGS)}")
    if opt.minutes and {"n_epochs", "n_epochs_decay"} & set(given):
        parser.error("--minutes and --n_epochs are two budgets: give one of them")
    for name in TrainOptions().parser.parse_given(opt.train):
        if name in SET_HERE or (name == "num_patches" and opt.queries != [None]):
            parser.error(f"--{name} after -- is set by the study itself: leave it out, or see --help")
    return opt


def _listed(parser: ArgumentParser, flag: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        values = [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ArgumentTypeError as error:
        parser.error(f"{flag} {text}: each {error}")
    if not values or len(set(values)) < len(values):
        parser.error(f"{flag} takes a list without repeats, not {text!r}")
    return values


if __name__ == "__main__":
    sys.exit(main())
