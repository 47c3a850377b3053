"""Train several configurations with several seeds under one budget, judge all alike, and write one page.

    python scripts/compare.py --dataroot datasets/stripes --out results/study --n_epochs 10
    python scripts/compare.py --configs qs_global,cut --seeds 0,1,2 -- --ngf 16
    python scripts/compare.py --configs all --preset quickstart --jobs 2 --gpu_ids -1

What follows -- goes to train.py, the same for every run whose system has that option. The budget is a number
of epochs, or with --minutes the training time of each run. OUT/index.html is the page, OUT/study.json holds
all its numbers. The same command again continues what was interrupted and repeats nothing that is done. A run
that fails is reported; the others continue.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.configurations import CONFIGS, DEFAULT, NEED_VGG, StudyOptions
from scripts.study import Study, run_study
from util.arguments import ArgumentParser
from util.errors import entry_point


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Run the study that a command line describes; exit status 1 if a run failed."""
    opt = parse(sys.argv[1:] if argv is None else argv)
    named = ", ".join(opt.configs) if len(opt.configs) <= 6 else f"{len(opt.configs)} configurations"
    return run_study(Study(opt, {name: CONFIGS[name] for name in opt.configs}, f"Study of {named}"))


def parse(argv: Sequence[str]) -> Namespace:
    """The study's options; see `StudyOptions`. A wrong call exits with status 2."""
    parser = ArgumentParser(prog="scripts/compare.py", description=__doc__.splitlines()[0])
    parser.group("what is compared")
    all_but = f"all: every one, but {', '.join(NEED_VGG)} only with -- --vgg_weights FILE"
    parser.add("--configs", ",".join(DEFAULT), f"list of {', '.join(CONFIGS)}; {all_but}")
    options = StudyOptions(parser, "./datasets/stripes", "0,1,2")
    opt = options.parse(argv)
    opt.out = opt.out or Path("results/study")
    if opt.configs == "all":
        opt.configs = [name for name in CONFIGS if name not in NEED_VGG or "vgg_weights" in opt.train]
    else:
        opt.configs = options.listed("--configs", opt.configs, str)
    for name in opt.configs:
        if name not in CONFIGS:
            parser.error(f"--configs {name} is unknown; there are {', '.join(CONFIGS)}")
    return opt


if __name__ == "__main__":
    sys.exit(main())
