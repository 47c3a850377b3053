"""Train several configurations with several seeds under one budget, judge all alike, and write one page.

    python scripts/compare.py --dataroot datasets/stripes --out results/study --n_epochs 10
    python scripts/compare.py --configs qs_global,cut --queries 64,256 --seeds 0,1,2 -- --ngf 16
    python scripts/compare.py --configs all --preset quickstart --jobs 2 --gpu_ids -1

What follows -- goes to train.py, the same for every run whose system has that option. The budget is a number
of epochs, or with --minutes the training time of each run. OUT/index.html is the page, OUT/study.json holds
all its numbers. The same command again continues what was interrupted and repeats nothing that is done. A run
that fails is reported; the others continue.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.configurations import CONFIGS, DEFAULT, NEED_VGG, StudyOptions
from scripts.study import Study, run_study
from util.arguments import ArgumentParser, integer
from util.errors import entry_point


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Run the study that a command line describes; exit status 1 if a run failed."""
    opt = parse(sys.argv[1:] if argv is None else argv)
    configs = configurations(opt)
    named = ", ".join(configs) if len(configs) <= 6 else f"{len(configs)} configurations"
    return run_study(Study(opt, configs, f"Study of {named}"))


def parse(argv: Sequence[str]) -> Namespace:
    """The study's options; see `StudyOptions`. A wrong call exits with status 2."""
    parser = ArgumentParser(prog="scripts/compare.py", description=__doc__.splitlines()[0])
    parser.group("what is compared")
    known = f"list of configurations, or all: {', '.join(CONFIGS)}"
    parser.add("--configs", ",".join(DEFAULT), known)
    parser.add("--queries", None, "list of --num_patches to try with every configuration", shown="train.py's")
    if NEED_VGG:
        parser.add("--vgg_weights", None, f"VGG-16's weights, for {', '.join(sorted(NEED_VGG))}")
    options = StudyOptions(parser, "./datasets/stripes", "0,1,2")
    opt = options.parse(argv)
    opt.out = opt.out or Path("results/study")
    opt.queries = options.listed("--queries", opt.queries, integer(1, 1_000_000)) if opt.queries else [None]
    if "num_patches" in opt.train and opt.queries != [None]:
        options.refuse_shared("num_patches")
    if opt.configs == "all":
        opt.configs = [config for config in CONFIGS if config not in NEED_VGG or opt.vgg_weights]
    else:
        opt.configs = options.listed("--configs", opt.configs, str)
    for config in opt.configs:
        if config not in CONFIGS:
            parser.error(f"--configs {config} is unknown; there are {', '.join(CONFIGS)}")
        if config in NEED_VGG and not opt.vgg_weights:
            parser.error(f"--configs {config} needs VGG-16's weights: give --vgg_weights FILE")
    return opt


def configurations(opt: Namespace) -> Mapping[str, Sequence[str]]:
    """The configurations by label, as words for train.py."""
    found = {}
    for config in opt.configs:
        words = list(CONFIGS[config])
        if config in NEED_VGG:
            words.append(f"--vgg_weights={opt.vgg_weights}")
        for queries in opt.queries:
            label = config if queries is None else f"{config}_q{queries}"
            found[label] = words + ([] if queries is None else [f"--num_patches={queries}"])
    return found


if __name__ == "__main__":
    sys.exit(main())
