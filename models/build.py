"""Declares the options of the networks, builds what they name, and says which images those networks take."""

from argparse import Namespace
from functools import partial

import torch
from torch import nn

from models.attention import GuidedResnetGenerator, GuidedUnetGenerator, PostHocAttention, TrainableAttention
from models.discriminator import NLayerDiscriminator, PixelDiscriminator
from models.domain_networks import DomainResnetGenerator
from models.generator import ResnetGenerator, UnetGenerator
from models.layers import INITS, NORMS, initialise
from models.patch_sampler import PatchHeads
from util.arguments import integer, real_number
from util.errors import UserError

RESNETS = ("resnet_9blocks", "resnet_6blocks", "resnet_4blocks")
UNETS = ("unet_256", "unet_128")
ATTENDING = {"posthoc_attn": PostHocAttention, "trainable_attn": TrainableAttention}


def add_options(add) -> None:
    """Declare the options of the networks that models share, with `add(flag, default, help, ...)`."""
    add = partial(add, scope="fixed")
    channels = {"choices": (1, 3), "type": integer(1)}
    add("--input_nc", 3, "channels of the source images: 1 (grey) or 3 (RGB)", **channels)
    add("--output_nc", 3, "channels of the target images: 1 (grey) or 3 (RGB)", **channels)
    add("--netG", "resnet_9blocks", "generator", choices=(*RESNETS, *UNETS))
    add("--ngf", 64, "channels after the generator's first convolution", type=integer(1))
    add("--normG", "instance", "normalisation in the generator", choices=tuple(NORMS))
    add("--no_dropout", True, "no dropout in the generator")
    add("--no_antialias", False, "downsample by strided convolutions instead of blurring first")
    transposed = "upsample by transposed convolutions instead of blurring"
    add("--no_antialias_up", False, transposed, only={"netG": RESNETS})
    judge = "discriminator; basic: the 70 x 70 PatchGAN; posthoc_attn, trainable_attn: with attention maps"
    add("--netD", "basic", judge, choices=("basic", "n_layers", "pixel", *ATTENDING))
    add("--ndf", 64, "channels after the discriminator's first convolution", type=integer(1))
    add("--n_layers_D", 3, "halvings in the discriminator", type=integer(1), only={"netD": ("n_layers",)})
    add("--normD", "instance", "normalisation in the discriminator", choices=tuple(NORMS))
    add("--init_type", "xavier", "how weights are drawn", choices=tuple(INITS))
    add("--init_gain", 0.02, "scale of the drawn weights", type=real_number(0, above=True))


def size_multiple(netG: str) -> int:
    """What the sides of an image must be multiples of for a generator of this name."""
    return int(netG.removeprefix("unet_")) if netG.startswith("unet") else 4


def network_defaults(netG: str) -> dict[str, object]:
    """Option defaults that go with a generator: of a U-Net, taps are depths (`models/generator.py`)."""
    return {"nce_layers": [0, 1, 2, 3, 4]} if netG.startswith("unet") else {}


def layer_channels(opt: Namespace, netG: nn.Module | None = None) -> list[int]:
    """Channels of the features at each of `--nce_layers`, of `netG` (None: of `--netG`), or UserError."""
    if netG is None:
        with torch.device("meta"):  # shapes alone: no memory, no random number
            netG = build_generator(opt)
    channels = netG.tap_channels()
    if missing := [layer for layer in opt.nce_layers if not 0 <= layer < len(channels)]:
        there = f"--netG {opt.netG} has layers 0 to {len(channels) - 1}"
        raise UserError(f"--nce_layers names layer {missing[0]}, but {there}: name some of these")
    return [channels[layer] for layer in opt.nce_layers]


def discriminator_mixes(opt: Namespace) -> bool:
    """Whether a batch norm of `--netD` lets images of one pass influence each other."""
    return opt.normD == "batch" or opt.netD == "trainable_attn"


def build_generator(
    opt: Namespace, backwards: bool = False, domains: int = 0, **guidance: str
) -> UnetGenerator | ResnetGenerator:
    """`--netG` with fresh weights, from `--input_nc` channels to `--output_nc`, or `backwards`."""
    channels = (opt.output_nc, opt.input_nc) if backwards else (opt.input_nc, opt.output_nc)
    settings = {"ngf": opt.ngf, "norm": opt.normG, "dropout": not opt.no_dropout, **guidance}
    if opt.netG.startswith("unet"):
        build = GuidedUnetGenerator if guidance else UnetGenerator
        settings["num_downs"] = size_multiple(opt.netG).bit_length() - 1
    else:
        build = GuidedResnetGenerator if guidance else ResnetGenerator
        settings["n_blocks"] = int(opt.netG.removeprefix("resnet_").removesuffix("blocks"))
        settings |= {"antialias": not opt.no_antialias, "antialias_up": not opt.no_antialias_up}
    if domains:
        build = DomainResnetGenerator
        settings |= {"domains": domains, "domain_dim": opt.domain_dim}
    return initialise(build(*channels, **settings), opt.init_type, opt.init_gain)


def build_discriminator(opt: Namespace, channels: int | None = None, scores: int = 1) -> nn.Module:
    """`--netD` with fresh weights, for images of so many channels (None: `--output_nc`); `scores` a patch."""
    channels = opt.output_nc if channels is None else channels
    if opt.netD in ATTENDING:
        net = ATTENDING[opt.netD](channels, opt.ndf, opt.normD, not opt.no_antialias)
    elif opt.netD == "pixel":
        net = PixelDiscriminator(channels, opt.ndf, opt.normD)
    else:
        layers = 3 if opt.netD == "basic" else opt.n_layers_D
        net = NLayerDiscriminator(channels, opt.ndf, layers, opt.normD, not opt.no_antialias, scores)
    return initialise(net, opt.init_type, opt.init_gain)


def build_heads(opt: Namespace, netG: nn.Module) -> nn.Module:
    """`--netF`, one head for each of `--nce_layers`."""
    heads = PatchHeads(layer_channels(opt, netG), opt.netF_nc, mlp=opt.netF == "mlp_sample")
    return initialise(heads, opt.init_type, opt.init_gain)
