"""The ablations of the paper's supplement, each run by one command:

    python scripts/ablations.py queries            train every setting in turn and translate its test images
    python scripts/ablations.py queries --print    show the commands and run none
    python scripts/ablations.py layers --only last_two -- --dataroot ./datasets/cat2dog --n_epochs 100
                                                   one setting; what follows -- goes to train.py

The same command again continues where it was interrupted. Judge the translations with scripts/evaluate.py.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from options.saved import run_folder
from options.train_options import TrainOptions
from util.errors import UserError, entry_point
from util.run.checkpoint import STATE_FILE

# Ablation -> setting -> options of train.py. README.md has the numbers published for horse to zebra.
COUNTS, SIDES = (64, 128, 256, 512), (3, 5, 7, 9, 11)
ABLATIONS: dict[str, dict[str, str]] = {
    "queries": {
        **{f"qsattn_{count}": f"--QS_mode global --num_patches {count}" for count in COUNTS},
        **{f"cut_{count}": f"--model cut --num_patches {count}" for count in COUNTS},
    },
    "layers": {
        "last_two": "--QS_mode global --qs_layers 12,16",
        # The supplement's model B.
        "all_five": "--QS_mode global --qs_layers 0,4,8,12,16 --qs_pool 64",
    },
    "modes": {mode: f"--QS_mode {mode}" for mode in ("global", "local", "local_global")},
    "window": {
        f"{mode}_{side}": f"--QS_mode {mode} --qs_window {side}"
        for mode in ("local", "local_global")
        for side in SIDES
    },
}


@entry_point
def main(argv: list[str] | None = None) -> int:
    """Run, or print, the commands of an ablation; the exit status is that of the first one that fails."""
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    settings = "; ".join(f"{name}: {', '.join(of)}" for name, of in ABLATIONS.items())
    parser.add_argument("ablation", choices=ABLATIONS, help=settings)
    parser.add_argument("--only", metavar="SETTING", help="one setting of the ablation instead of all")
    parser.add_argument("--print", action="store_true", help="print the commands instead of running them")
    opt = parser.parse_args(argv[:cut])
    settings = ABLATIONS[opt.ablation]
    if opt.only and opt.only not in settings:
        raise UserError(
            f"--only {opt.only} is not a setting of {opt.ablation}; there are {', '.join(settings)}"
        )
    for setting in [opt.only] if opt.only else settings:
        for command in commands(opt.ablation, setting, argv[cut + 1 :]):
            print("python", shlex.join(command), flush=True)
            if not opt.print and (status := subprocess.run([sys.executable, *command], cwd=ROOT).returncode):
                return status
    return 0


def commands(ablation: str, setting: str, train_options: list[str]) -> tuple[list[str], list[str]]:
    """The words after `python` that train one setting, and those that translate its test images."""
    words = [*train_options, *ABLATIONS[ablation][setting].split()]
    data = Path(TrainOptions().parse(words).dataroot).name
    train = ["train.py", *words, "--name", f"{data}_{ablation}_{setting}"]
    opt = TrainOptions().parse(train[1:])
    if (run_folder({**vars(opt), "suffix": ""}) / STATE_FILE).is_file():
        train.append("--continue_train")
    device = ["--gpu_ids", ",".join(map(str, opt.gpu_ids)) or "-1"]
    return train, ["test.py", "--name", opt.name, "--checkpoints_dir", opt.checkpoints_dir, *device]


if __name__ == "__main__":
    sys.exit(main())
