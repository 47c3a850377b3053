"""What the options of a training may not be, alone or together. Each refusal says what was found and what would work."""

from __future__ import annotations

from argparse import Namespace

from data.transforms import crops
from models.build import GENERATORS, layer_channels, size_multiple, smallest_side
from util.errors import UserError

# Options that do nothing unless another one has one of these values. Typed in vain, they are a mistake to be told.
EFFECTIVE_WITH: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "QS_mode": (("model", ("qs",)),),
    "qs_layers": (("model", ("qs",)),),
    "qs_pool": (("model", ("qs",)),),
    "qs_variant": (("model", ("qs",)),),
    "qs_window": (("model", ("qs",)), ("QS_mode", ("local", "local_global"))),
    "netF_nc": (("netF", ("mlp_sample",)),),
    "n_layers_D": (("netD", ("n_layers",)),),
    "no_antialias_up": (("netG", tuple(name for name in GENERATORS if name.startswith("resnet"))),),
    "lr_decay_iters": (("lr_policy", ("step",)),),
}


def check_training(opt: Namespace, defaults: dict[str, object]) -> None:
    """UserError for the first thing that is wrong in the options of a training."""
    _refuse_without_effect(opt, defaults)
    _check_layers(opt)
    _check_schedule(opt)
    _check_start(opt)
    _check_losses(opt)
    _check_image_size(opt)
    _check_released_variant(opt)


def _refuse_without_effect(opt: Namespace, defaults: dict[str, object]) -> None:
    for name, conditions in EFFECTIVE_WITH.items():
        for other, values in conditions:
            if (
                name in opt.given
                and getattr(opt, name) != defaults[name]
                and getattr(opt, other) not in values
            ):
                raise UserError(
                    f"--{name} has no effect with --{other} {getattr(opt, other)}: leave it out, or give --{other} {' or '.join(values)}"
                )


def _check_layers(opt: Namespace) -> None:
    layer_channels(opt)
    outside = [layer for layer in opt.qs_layers if layer not in opt.nce_layers]
    if outside:
        raise UserError(
            f"--qs_layers names {outside[0]}, which is not among --nce_layers {','.join(map(str, opt.nce_layers))}"
        )
    if opt.qs_window % 2 == 0:
        raise UserError(
            f"--qs_window is {opt.qs_window}, but a window has a centre: give an odd number such as 7"
        )
    if opt.display_queries and opt.model != "qs":
        raise UserError(
            f"--display_queries shows what QS-Attn chooses, but --model is {opt.model}, which draws at random"
        )


def _check_schedule(opt: Namespace) -> None:
    last = opt.n_epochs + opt.n_epochs_decay
    if last == 0:
        raise UserError("--n_epochs and --n_epochs_decay are both 0: nothing would be trained")
    if opt.epoch_count > last:
        raise UserError(
            f"--epoch_count {opt.epoch_count} is behind the last epoch, {last} (--n_epochs + --n_epochs_decay)"
        )


def _check_start(opt: Namespace) -> None:
    for other in ("overwrite", "pretrained_name"):
        if opt.continue_train and other in opt.given and getattr(opt, other):
            raise UserError(f"--continue_train and --{other} contradict each other: give one of them")
    if "epoch" in opt.given and opt.epoch != "latest" and not (opt.continue_train or opt.pretrained_name):
        raise UserError(
            f"--epoch {opt.epoch} says which weights to start from: give --continue_train for those of this run, or "
            "--pretrained_name for those of another; the first epoch's number is --epoch_count"
        )


def _check_losses(opt: Namespace) -> None:
    if opt.input_nc != opt.output_nc and opt.lambda_NCE > 0:
        raise UserError(
            f"--input_nc {opt.input_nc} and --output_nc {opt.output_nc} differ, but the contrastive loss encodes "
            "translations with the encoder of the source: give both the same, or --lambda_NCE 0"
        )
    if opt.lambda_GAN == 0 and opt.lambda_NCE == 0:
        raise UserError("--lambda_GAN and --lambda_NCE are both 0: there is nothing to learn from")


def _check_image_size(opt: Namespace) -> None:
    """Every image of a training must suit the generator's halvings and leave the discriminator a score."""
    multiple, smallest = size_multiple(opt.netG), smallest_side(opt)
    if not crops(opt.preprocess):
        if multiple > 4:
            raise UserError(
                f"--preprocess {opt.preprocess} gives images of any size, but --netG {opt.netG} needs sides that are multiples of "
                f"{multiple}: use a mode that crops, such as resize_and_crop, with --crop_size {multiple}"
            )
        return
    if opt.crop_size % multiple or opt.crop_size < smallest:
        least = -(-smallest // multiple) * multiple
        nearest = max(least, round(opt.crop_size / multiple) * multiple)
        raise UserError(
            f"--crop_size {opt.crop_size} cannot be used: --netG {opt.netG} needs a multiple of {multiple}, --netD {opt.netD} at "
            f"least {smallest} pixels. Take {nearest}"
        )
    if opt.preprocess != "crop" and opt.load_size < opt.crop_size:
        raise UserError(
            f"--crop_size {opt.crop_size} is larger than --load_size {opt.load_size}: nothing could be cropped"
        )


def _check_released_variant(opt: Namespace) -> None:
    """The released local routing pairs patches with channels, and mixes the images of a larger batch."""
    if opt.model != "qs" or (opt.qs_variant, opt.QS_mode) != ("released", "local"):
        return
    channels = dict(zip(opt.nce_layers, layer_channels(opt), strict=True))
    found = sorted({channels[layer] for layer in opt.qs_layers})
    if found != [opt.num_patches] or opt.batch_size > 1:
        raise UserError(
            "--qs_variant released with --QS_mode local works, as the released code does, for --batch_size 1 and as many "
            f"--num_patches as each of --qs_layers has channels; found --batch_size {opt.batch_size}, --num_patches "
            f"{opt.num_patches}, and {' and '.join(map(str, found))} channels"
        )
