"""What a study compares: each system as options of train.py, and which of a study's options reach it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from models import MODELS
from options.train_options import TrainOptions

SYSTEMS = {
    "qs_global": "--model=qs --QS_mode=global",
    "qs_local": "--model=qs --QS_mode=local",
    "qs_local_global": "--model=qs --QS_mode=local_global",
    "qs_released": "--model=qs --QS_mode=global --qs_variant=released",
    "cut": "--model=cut",
    # The weight of the contrastive loss belongs to FastCUT and DCLGAN: a preset does not change it.
    "fastcut": "--model=fastcut --lambda_NCE=10",
    "qs_dual": "--model=qs_dual --lambda_NCE=2",
    "dcl": "--model=dcl --lambda_NCE=2",
    "cycle_gan": "--model=cycle_gan",
    # Versions 1 and 2 of the release.
    "asgit_pha": "--model=asgit --netD=posthoc_attn --attention_source=memory --attention_fusion=rmult",
    "asgit_tam": "--model=asgit --netD=trainable_attn --attention_source=discriminator"
    " --attention_fusion=alpha",
    "fsesim": "--model=sesim",
    "lsesim": "--model=sesim --learned_attn=true",
    "munit": "--model=munit",
}
# The configurations of models that exist.
CONFIGS = {
    name: tuple(words.split())
    for name, words in SYSTEMS.items()
    if words.split()[0].removeprefix("--model=") in MODELS
}
DEFAULT = ("qs_global", "qs_local", "qs_local_global", "cut", "fastcut")
NEED_VGG = {name for name, words in CONFIGS.items() if "--model=sesim" in words}
PRESETS = {path.stem: path for path in (Path(__file__).parents[1] / "presets").glob("*.txt")}


def read_preset(name: str) -> list[str]:
    """The words for train.py in scripts/presets/NAME.txt."""
    return shlex.split(PRESETS[name].read_text(encoding="utf-8"), comments=True)


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
        conditions = options.parser.conditions.get(name, {})
        return name not in lacking and all(values[other] in of for other, of in conditions.items())

    return {name: value for name, value in given.items() if name in own or acts(name)}
