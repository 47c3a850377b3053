"""Which options of a training are refused, alone or together, with what was found and what would work."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Mapping

from data.transforms import crops
from models import MODELS
from models.image_pool import check_pool
from util.arguments import Option
from util.errors import UserError
from util.run.progress import Length


def check_training(opt: Namespace, options: Mapping[str, Option]) -> None:
    """UserError for the first thing that is wrong in the options of a training."""
    _refuse_without_effect(opt, options)
    MODELS[opt.model].check(opt)
    _check_schedule(opt)
    _check_start(opt)
    _check_image_size(opt)
    check_pool(opt)
    _check_watchers(opt)


def _refuse_without_effect(opt: Namespace, options: Mapping[str, Option]) -> None:
    """UserError for a given option, not at its default, that has no effect with the value of another one."""
    for name in opt.given:
        if getattr(opt, name) == options[name].default:
            continue
        if name in MODELS[opt.model].lacking:
            raise UserError(f"--{name} has no effect with --model {opt.model}: leave it out")
        for other, values in (options[name].only or {}).items():
            if getattr(opt, other) not in values:
                raise UserError(
                    f"--{name} has no effect with --{other} {getattr(opt, other)}: leave it out, or give "
                    f"--{other} {' or '.join(map(str, values))}"
                )


def _check_schedule(opt: Namespace) -> None:
    length = Length.of(opt)
    if length.total == 0:
        raise UserError("--n_epochs and --n_epochs_decay are both 0: nothing would be trained")
    if length.unit == "iterations":
        for name in {"n_epochs", "n_epochs_decay"} & set(opt.given):
            raise UserError(f"--{name} has no effect, as this training is {length} long: leave it out")
    elif opt.epoch_count > length.total:
        raise UserError(f"--epoch_count {opt.epoch_count} is after the last epoch, {length.total}")


def _check_start(opt: Namespace) -> None:
    for other in ("overwrite", "pretrained_name"):
        if opt.continue_train and other in opt.given and getattr(opt, other):
            raise UserError(f"--continue_train and --{other} contradict each other: give one of them")
    if "epoch" in opt.given and opt.epoch != "latest" and not (opt.continue_train or opt.pretrained_name):
        raise UserError(
            f"--epoch {opt.epoch} says which weights to start from: give --continue_train for those of this "
            "run, or --pretrained_name for those of another"
        )


def _check_image_size(opt: Namespace) -> None:
    """Every image of a training must suit the generator's halvings and leave the discriminator a score."""
    multiple, smallest = MODELS[opt.model].size_limits(opt)
    if not crops(opt.preprocess):
        if multiple > 4:
            raise UserError(
                f"--preprocess {opt.preprocess} gives images of any size, but the generator needs multiples "
                f"of {multiple}: use a mode that crops"
            )
        return
    if opt.crop_size % multiple or opt.crop_size < smallest:
        least = -(-smallest // multiple) * multiple
        nearest = max(least, round(opt.crop_size / multiple) * multiple)
        raise UserError(
            f"--crop_size {opt.crop_size} cannot be used: the generator needs a multiple of {multiple}, the "
            f"discriminator at least {smallest} pixels. Take {nearest}"
        )
    if opt.preprocess != "crop" and opt.load_size < opt.crop_size:
        raise UserError(f"--crop_size {opt.crop_size} is larger than --load_size {opt.load_size}")


def _check_watchers(opt: Namespace) -> None:
    """What was asked for must be installed and usable: a run nobody sees is noticed too late."""
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("use_wandb", "wandb.sdk")):
        try:
            if getattr(opt, name):
                importlib.import_module(module)
        except Exception as error:  # not installed, or broken by another package
            package = f"the package {name.removeprefix('use_')}, which cannot be imported ({error})"
            mend = f"pip install -r requirements-watch.txt, or leave --{name} out"
            raise UserError(f"--{name} needs {package}: {mend}") from None
    if opt.use_wandb:
        from util.watch.wandb_run import login_obstacle

        if obstacle := login_obstacle():
            raise UserError(f"--use_wandb: {obstacle}")
