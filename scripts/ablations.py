"""The ablations of the papers' supplements, each trained, judged and shown on one page by one command:

    python scripts/ablations.py queries            every setting, on ./datasets/horse2zebra
    python scripts/ablations.py queries --print    show the trainings and run none
    python scripts/ablations.py layers --only last_two --dataroot ./datasets/cat2dog -- --ngf 32
                                                   one setting; what follows -- goes to train.py

OUT/index.html shows pictures in columns and the metrics beside the published numbers. The same command again
continues where it was interrupted. All other options are those of scripts/compare.py.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.attention.fusion import STAGES
from scripts.study.options import StudyOptions
from scripts.study.study import Study, run_study
from util.arguments import ArgumentParser
from util.errors import UserError, entry_point


@dataclass(frozen=True)
class Ablation:
    """Settings of train.py under one title.

    Attributes:
        title: what is varied.
        settings: options of train.py by the setting's name.
        published: data set -> setting -> metric -> number, or number and spread as a text.
        directions: which of AtoB and BtoA are judged.
        source: where the published numbers are from, with {data}.
    """

    title: str
    settings: Mapping[str, str]
    published: Mapping[str, Mapping[str, Mapping[str, float | str]]] = field(default_factory=dict)
    directions: Sequence[str] = ("AtoB",)
    source: str = "supplement of QS-Attn, {data}: 400 epochs, 256 x 256, the last checkpoint."


def fid_and_swd(**numbers: tuple[float, float]) -> dict[str, dict[str, float]]:
    """Published numbers of settings, as the supplement gives them: FID / SWD."""
    return {setting: {"FID": fid, "SWD": swd} for setting, (fid, swd) in numbers.items()}


def kid_both_ways(**numbers: tuple[float, float, float, float]) -> dict[str, dict[str, str]]:
    """Published target KID x 100 of settings, A to B and B to A, as (mean, deviation, mean, deviation)."""
    return {
        setting: {
            "KID": f"{to_B / 100:.4f} ± {s_B / 100:.4f}",
            "KID BtoA": f"{to_A / 100:.4f} ± {s_A / 100:.4f}",
        }
        for setting, (to_B, s_B, to_A, s_A) in numbers.items()
    }


COUNTS, SIDES = (64, 128, 256, 512), (3, 5, 7, 9, 11)
ABLATIONS = {
    "queries": Ablation(
        "Number of queries",
        {f"qsattn_{count}": f"--QS_mode global --num_patches {count}" for count in COUNTS}
        | {f"cut_{count}": f"--model cut --num_patches {count}" for count in COUNTS},
        {
            "horse2zebra": fid_and_swd(
                qsattn_64=(47.9, 30.1),
                qsattn_128=(40.9, 28.5),
                qsattn_256=(41.1, 30.3),
                qsattn_512=(45.6, 31.1),
                cut_64=(52.6, 33.4),
                cut_128=(46.5, 33.8),
                cut_256=(45.5, 31.5),
                cut_512=(53.5, 32.8),
            )
        },
    ),
    "layers": Ablation(
        "Layers with QS-Attn: the last two (Fig. 1, model A) or all five (model B)",
        {
            "last_two": "--QS_mode global --qs_layers 12,16",
            "all_five": "--QS_mode global --qs_layers 0,4,8,12,16 --qs_pool 64",
        },
        {
            "horse2zebra": fid_and_swd(last_two=(41.1, 30.3), all_five=(40.4, 32.5)),
            "cat2dog": fid_and_swd(last_two=(72.8, 12.8), all_five=(73.1, 12.6)),
        },
    ),
    "modes": Ablation(
        "Attention that selects and routes",
        {mode: f"--QS_mode {mode}" for mode in ("global", "local", "local_global")},
        {"horse2zebra": {"global": {"FID": 41.1, "SWD": 30.3}}},
    ),
    "window": Ablation(
        "Side of the local window",
        {
            f"{mode}_{side}": f"--QS_mode {mode} --qs_window {side}"
            for mode in ("local", "local_global")
            for side in SIDES
        },
    ),
    "fusion": Ablation(
        "Stage at which ASGIT fuses attention: the image (F0), before the halvings (F1) "
        "to after all blocks (F4)",
        {stage: f"--model asgit --attention_stage {stage}" for stage in STAGES},
        {
            "horse2zebra": kid_both_ways(
                F0=(1.03, 0.35, 3.42, 0.51),
                F1=(1.07, 0.41, 3.42, 0.65),
                F2=(1.29, 0.51, 3.46, 0.60),
                F3=(1.47, 0.61, 3.88, 0.66),
                F4=(1.04, 0.63, 3.63, 0.68),
            )
        },
        ("AtoB", "BtoA"),
        "supplement of ASGIT, {data}: 200 epochs, 256 x 256; KID needs --inception_weights.",
    ),
}


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Run an ablation, or print its trainings; exit status 1 if a run failed."""
    parser = ArgumentParser(prog="scripts/ablations.py", description=__doc__.splitlines()[0].rstrip(":"))
    listed = "; ".join(f"{name}: {', '.join(of.settings)}" for name, of in ABLATIONS.items())
    parser.add_argument("ablation", choices=ABLATIONS, help=listed)
    parser.add("--only", None, "one setting of the ablation", shown="all")
    parser.add("--print", False, "print the trainings instead of running them")
    opt = StudyOptions(parser, "./datasets/horse2zebra", "0").parse(sys.argv[1:] if argv is None else argv)
    ablation, data = ABLATIONS[opt.ablation], Path(opt.dataroot).name
    opt.out = opt.out or Path("results", f"{data}_{opt.ablation}")
    settings = {setting: tuple(words.split()) for setting, words in ablation.settings.items()}
    if opt.only and opt.only not in settings:
        raise UserError(f"--only {opt.only} is not a setting of {opt.ablation}: it has {', '.join(settings)}")
    if opt.only:
        settings = {opt.only: settings[opt.only]}
    # Of a set without published numbers those of the paper's main one, under its name.
    known = data if data in ablation.published else next(iter(ablation.published), "")
    published = ablation.published.get(known, {})
    shown = {setting: published[setting] for setting in settings if setting in published}
    source = ablation.source.format(data=known)
    study = Study(opt, settings, ablation.title, shown, source, ablation.directions)
    if not opt.print:
        return run_study(study)
    for run in study.runs:
        print("python train.py", shlex.join(study.train_words(run)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
