"""The ablations of the paper's supplement, each run by one command:

    python scripts/ablations.py queries                        trains every setting in turn, then translates its test images
    python scripts/ablations.py queries --print                shows the commands and runs none
    python scripts/ablations.py layers --only last_two -- --dataroot ./datasets/cat2dog --n_epochs 100
                                                               one setting; what follows -- goes to train.py

Interrupted, it goes on where it stopped when called again. Judge the translations with scripts/evaluate.py --name NAME.
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

# ablation -> setting -> options of train.py; the numbers published for horse to zebra are in README.md
ABLATIONS: dict[str, dict[str, str]] = {
    "queries": {
        **{f"qsattn_{number}": f"--QS_mode global --num_patches {number}" for number in (64, 128, 256, 512)},
        **{f"cut_{number}": f"--model cut --num_patches {number}" for number in (64, 128, 256, 512)},
    },
    "layers": {
        "last_two": "--QS_mode global --qs_layers 12,16",
        "all_five": "--QS_mode global --qs_layers 0,4,8,12,16 --qs_pool 64",  # the supplement's model B
    },
    "modes": {mode: f"--QS_mode {mode}" for mode in ("global", "local", "local_global")},
    "window": {
        f"{mode}_{side}": f"--QS_mode {mode} --qs_window {side}"
        for mode in ("local", "local_global")
        for side in (3, 5, 7, 9, 11)
    },
}


def commands(ablation: str, setting: str, train_options: list[str]) -> tuple[list[str], list[str]]:
    """The words after `python` that train one setting and that translate its test images."""
    words = [*train_options, *ABLATIONS[ablation][setting].split()]
    data = Path(TrainOptions().parse(words).dataroot).name
    train = ["train.py", *words, "--name", f"{data}_{ablation}_{setting}"]
    opt = TrainOptions().parse(train[1:])
    if (run_folder({**vars(opt), "suffix": ""}) / STATE_FILE).is_file():
        train.append("--continue_train")
    device = ["--gpu_ids", ",".join(map(str, opt.gpu_ids)) or "-1"]
    return train, ["test.py", "--name", opt.name, "--checkpoints_dir", opt.checkpoints_dir, *device]


@entry_point
def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "ablation",
        choices=ABLATIONS,
        help="; ".join(f"{name}: {', '.join(of)}" for name, of in ABLATIONS.items()),
    )
    parser.add_argument("--only", metavar="SETTING", help="one setting of the ablation instead of all")
    parser.add_argument("--print", action="store_true", help="print the commands instead of running them")
    opt = parser.parse_args(argv[:cut])
    settings = ABLATIONS[opt.ablation]
    if opt.only and opt.only not in settings:
        raise UserError(
            f"--only {opt.only} is no setting of {opt.ablation}: name one of {', '.join(settings)}"
        )
    for setting in [opt.only] if opt.only else settings:
        for command in commands(opt.ablation, setting, argv[cut + 1 :]):
            print("python", shlex.join(command), flush=True)
            if not opt.print and (status := subprocess.run([sys.executable, *command], cwd=ROOT).returncode):
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
