"""Declares the options of the networks, builds what they name, and says which images those networks take."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

import torch
from torch import nn

from models.attention.discriminator import PostHocAttention, TrainableAttention
from models.attention.fusion import GuidedResnetGenerator, GuidedUnetGenerator
from models.discriminator import NLayerDiscriminator, PixelDiscriminator
from models.domain_networks import DomainResnetGenerator
from models.generator import ResnetGenerator
from models.layers import INITS, NORMS, initialise
from models.patch_sampler import PatchHeads
from models.unet import UnetGenerator
from util.arguments import integer, real_number
from util.errors import UserError

GENERATORS = ("resnet_9blocks", "resnet_6blocks", "resnet_4blocks", "unet_256", "unet_128")
ATTENDING: dict[str, type[nn.Module]] = {
    "posthoc_attn": PostHocAttention,
    "trainable_attn": TrainableAttention,
}
DISCRIMINATORS = ("basic", "n_layers", "pixel", *ATTENDING)


def add_options(add) -> None:
    """Declare the options of the networks that models share, with `add(flag, default, help, ...)`."""
    add = partial(add, scope="fixed")
    add("--netG", "resnet_9blocks", "generator", choices=GENERATORS)
    add("--ngf", 64, "channels after the generator's first convolution", type=integer(1))
    add("--normG", "instance", "normalisation in the generator", choices=tuple(NORMS))
    add("--no_dropout", True, "no dropout in the generator")
    add("--no_antialias", False, "downsample by strided convolutions instead of blurring first")
    resnets = tuple(name for name in GENERATORS if name.startswith("resnet"))
    add(
        "--no_antialias_up",
        False,
        "upsample by transposed convolutions instead of blurring",
        only={"netG": resnets},
    )
    add(
        "--netD",
        "basic",
        "discriminator; basic: the 70 x 70 PatchGAN; posthoc_attn, trainable_attn: also give attention maps",
        choices=DISCRIMINATORS,
    )
    add("--ndf", 64, "channels after the discriminator's first convolution", type=integer(1))
    add("--n_layers_D", 3, "halvings in the discriminator", type=integer(1), only={"netD": ("n_layers",)})
    add("--normD", "instance", "normalisation in the discriminator", choices=tuple(NORMS))
    add("--init_type", "xavier", "how weights are drawn", choices=tuple(INITS))
    add("--init_gain", 0.02, "scale of the drawn weights", type=real_number(0, above=True))


def size_multiple(netG: str) -> int:
    """What the sides of an image must be multiples of for a generator of this name."""
    return 2 ** _unet_depth(netG) if netG.startswith("unet") else 4


def _unet_depth(netG: str) -> int:
    return {"unet_256": 8, "unet_128": 7}[netG]


def network_defaults(netG: str) -> dict[str, object]:
    """Option defaults that go with a generator: of a U-Net, taps are depths (`models/unet.py`)."""
    return {"nce_layers": [0, 1, 2, 3, 4]} if netG.startswith("unet") else {}


def layer_channels(opt: Namespace) -> list[int]:
    """Channels of the features at each of `--nce_layers`; UserError where `--netG` has no such layer."""
    with torch.device("meta"):  # shapes alone: no memory, no random number
        return _layer_channels(opt, _generator(opt))


def smallest_side(opt: Namespace) -> int:
    """The least height and width of an image that `--netD` can judge, in pixels."""
    with torch.device("meta"):
        return _discriminator(opt).smallest_side


def build_generator(opt: Namespace, backwards: bool = False, **guidance: str) -> nn.Module:
    """`--netG` with fresh weights, from `--input_nc` channels to `--output_nc`, or `backwards`.

    Args:
        guidance: `fusion` and `stage` of `models/attention/fusion.py`, for a generator guided by attention.
    """
    return initialise(_generator(opt, backwards, **guidance), opt.init_type, opt.init_gain)


def check_guidance(opt: Namespace, **guidance: str) -> None:
    """UserError where `--netG` cannot be guided in this way."""
    with torch.device("meta"):
        _generator(opt, **guidance)


def _generator(opt: Namespace, backwards: bool = False, domains: int = 0, **guidance) -> nn.Module:
    channels = (opt.output_nc, opt.input_nc) if backwards else (opt.input_nc, opt.output_nc)
    settings = {"ngf": opt.ngf, "norm": opt.normG, "dropout": not opt.no_dropout, **guidance}
    if opt.netG.startswith("unet"):
        unet = GuidedUnetGenerator if guidance else UnetGenerator
        return unet(*channels, num_downs=_unet_depth(opt.netG), **settings)
    blocks = int(opt.netG.removeprefix("resnet_").removesuffix("blocks"))
    antialias = {"antialias": not opt.no_antialias, "antialias_up": not opt.no_antialias_up}
    if domains:
        return DomainResnetGenerator(*channels, domains=domains, n_blocks=blocks, **settings, **antialias)
    resnet = GuidedResnetGenerator if guidance else ResnetGenerator
    return resnet(*channels, n_blocks=blocks, **settings, **antialias)


def conditional_generator(opt: Namespace, domains: int, device: str = "cpu") -> DomainResnetGenerator:
    """`--netG`, a ResNet, with fresh weights and a decoder that knows the target domain."""
    with torch.device(device):
        net = _generator(opt, domains=domains, domain_dim=opt.domain_dim)
        return initialise(net, opt.init_type, opt.init_gain)


def build_discriminator(opt: Namespace, channels: int | None = None, scores: int = 1) -> nn.Module:
    """`--netD` with fresh weights, for images of so many channels (None: `--output_nc`).

    Args:
        scores: of a PatchGAN for each patch.
    """
    return initialise(_discriminator(opt, channels, scores), opt.init_type, opt.init_gain)


def generator_mixes(opt: Namespace) -> bool:
    """Whether a batch norm of `--netG` lets images of one pass influence each other."""
    return opt.normG == "batch"


def discriminator_mixes(opt: Namespace) -> bool:
    """Whether a batch norm of `--netD` lets images of one pass influence each other."""
    return opt.normD == "batch" or opt.netD == "trainable_attn"


def _discriminator(opt: Namespace, channels: int | None = None, scores: int = 1) -> nn.Module:
    channels = opt.output_nc if channels is None else channels
    if opt.netD in ATTENDING:
        return ATTENDING[opt.netD](channels, opt.ndf, opt.normD, not opt.no_antialias)
    if opt.netD == "pixel":
        return PixelDiscriminator(channels, opt.ndf, opt.normD)
    layers = 3 if opt.netD == "basic" else opt.n_layers_D
    return NLayerDiscriminator(channels, opt.ndf, layers, opt.normD, not opt.no_antialias, scores)


def build_heads(opt: Namespace, netG: nn.Module) -> nn.Module:
    """`--netF`, one head for each of `--nce_layers`; UserError where the generator has no such layer."""
    heads = PatchHeads(_layer_channels(opt, netG), opt.netF_nc, mlp=opt.netF == "mlp_sample")
    return initialise(heads, opt.init_type, opt.init_gain)


def _layer_channels(opt: Namespace, netG: nn.Module) -> list[int]:
    """Channels of the features at each of `--nce_layers`."""
    channels = netG.tap_channels()
    for layer in opt.nce_layers:
        if not 0 <= layer < len(channels):
            kind = (
                "depths of its way down"
                if opt.netG.startswith("unet")
                else "positions in its list of modules"
            )
            raise UserError(
                f"--nce_layers names layer {layer}, but --netG {opt.netG} has layers 0 to "
                f"{len(channels) - 1} ({kind}); name some of these"
            )
    return [channels[layer] for layer in opt.nce_layers]
