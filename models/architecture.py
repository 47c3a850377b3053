"""Reads from a state dict which network it belongs to, in terms of the options that build that network.

The released key names number the modules. Shapes and gaps between the numbers determine the rest: how many
residual blocks, whether a Dropout or a blur lies between two convolutions, which normalisation follows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from util.arguments import as_text

State = Mapping[str, Tensor]
Architecture = dict[str, object]  # option -> value

# A key that only networks of this kind have, in the order in which they are tried.
KINDS = {
    "a generator of MUNIT": r"enc_content\.model\.\d+\.conv\.weight",
    "a discriminator of MUNIT": r"cnns\.\d+\.\d+\.conv\.weight",
    "a generator of StarGAN": r"main\.\d+\.main\.0\.weight",
    "a discriminator of StarGAN": r"conv2\.weight",
    "heads of features (netF)": r"(mlp|conv)_\d+\.0\.weight",
    "a U-Net generator": r"model\.model\.\d+\.weight",
    "a ResNet generator": r"model\.\d+\.conv_block\.\d+\.weight",
    "a PatchGAN discriminator": r"model\.\d+\.weight",
    "a per-pixel discriminator": r"net\.\d+\.weight",
    "a discriminator with attention": r"model_p1\.\d+\.weight|mask_brunch\.d1\.weight",
}
MOST_KEYS = 4  # that a message lists


def kind(state: State) -> str:
    """What network a state dict with the released key names belongs to, in words."""
    matches = (words for words, key in KINDS.items() if any(re.fullmatch(key, name) for name in state))
    return next(matches, "no network of this project")


def architecture(state: State) -> Architecture:
    """The options that built the network of a state dict, as far as its weights show them; {} if unknown."""
    readers = {
        "a generator of MUNIT": _munit_generator,
        "a generator of StarGAN": _stargan_generator,
        "a U-Net generator": _unet,
        "a ResNet generator": _resnet,
        "a PatchGAN discriminator": _patchgan,
    }
    try:
        return readers[kind(state)](state)
    except (KeyError, IndexError, ValueError):  # similar names, but other modules
        return {}


def explain(state: State, own: State) -> str:
    """Why a state dict does not fit a network, given the network's own."""
    if kind(state) != kind(own):
        return f"the file holds {kind(state)}, but these options build {kind(own)}"
    found, asked = architecture(state), architecture(own)
    names = [name for name in {**asked, **found} if found.get(name) != asked.get(name)]
    if found and names:
        return f"these options are {_flags(asked, names)}; give those of its training, {_flags(found, names)}"
    differ = [key for key in {**own, **state} if _shape(own, key) != _shape(state, key)]
    more = f" and {len(differ) - MOST_KEYS} more" if len(differ) > MOST_KEYS else ""
    return f"the shapes differ, or one has no such tensor: {', '.join(differ[:MOST_KEYS])}{more}"


def _shape(state: State, key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None


def _flags(options: Architecture, names: list[str]) -> str:
    return " ".join(f"--{name} {as_text(options.get(name)) or 'none'}" for name in names)


def _resnet(state: State) -> Architecture:
    blocks = _numbers(state, r"model\.(\d+)\.conv_block\..*")
    first, last = blocks[0], blocks[-1]
    convolutions = _convolutions(state)
    after = min(number for number in convolutions if number > last)
    return {
        "netG": f"resnet_{len(blocks)}blocks",
        "ngf": convolutions[1].shape[0],
        **_input(convolutions[1].shape[1]),
        "output_nc": convolutions[max(convolutions)].shape[0],
        "normG": _norm(state, "model.1.bias"),
        "no_dropout": f"model.{first}.conv_block.5.weight" in state,  # a Dropout moves this convolution to 6
        "no_antialias": first == 10,  # two BlurDownsamples move the first block to 12
        "no_antialias_up": after == last + 1,  # a BlurUpsample stands before the convolution
        **_domains(state),
    }


def _domains(state: State) -> Architecture:
    """Domains by their numbers: weights do not tell their names."""
    if "domains.weight" not in state:
        return {}
    count, dim = state["domains.weight"].shape
    return {"domains": [str(number) for number in range(count)], "domain_dim": dim}


def _stargan_generator(state: State) -> Architecture:
    blocks = _numbers(state, r"main\.(\d+)\.main\.0\.weight")
    convolutions = _convolutions(state, "main")
    first, last = convolutions[0], convolutions[max(convolutions)]
    channels = last.shape[0]  # of its images; the first convolution takes a channel for each domain too
    return {
        "ngf": first.shape[0],
        "input_nc": channels,
        "output_nc": channels,
        "g_repeat_num": len(blocks),
        "domains": [str(number) for number in range(first.shape[1] - channels)],
    }


def _unet(state: State) -> Architecture:
    depth = max(key.count("model.") for key in state) - 1  # the way into the U-Net itself is one more
    down = state["model.model.0.weight"]
    return {
        "netG": f"unet_{2**depth}",
        "ngf": down.shape[0],
        **_input(down.shape[1]),
        "output_nc": state["model.model.3.weight"].shape[1],
        "normG": _norm(state, "model.model.0.bias"),
    }


def _input(channels: int) -> Architecture:
    """Images have 1 or 3 channels; a generator that takes attention as a channel has one more."""
    if channels % 2 == 0:
        return {"input_nc": channels - 1, "attention_fusion": "alpha"}
    return {"input_nc": channels}


def _patchgan(state: State) -> Architecture:
    convolutions = _convolutions(state)
    second, layers = sorted(convolutions)[1], len(convolutions) - 2
    return {
        "netD": "basic" if layers == 3 else "n_layers",
        "n_layers_D": layers,
        "ndf": convolutions[0].shape[0],
        "output_nc": convolutions[0].shape[1],
        "normD": _norm(state, f"model.{second}.bias"),
        "no_antialias": second == 2,  # a BlurDownsample moves it to 3
    }


def _munit_generator(state: State) -> Architecture:
    first = state["enc_content.model.0.conv.weight"]
    layers = _numbers(state, r"dec\.model\.(\d+)\.conv\.weight")
    mlp = state["mlp.model.0.fc.weight"]
    return {
        "ngf": first.shape[0],
        "input_nc": first.shape[1],
        "output_nc": state[f"dec.model.{layers[-1]}.conv.weight"].shape[0],
        "mlp_dim": mlp.shape[0],
        "style_dim": mlp.shape[1],
        "n_downsample": len(layers) - 1,
        "n_res": len(_numbers(state, r"dec\.model\.0\.model\.(\d+)\.model\.0\.conv\.weight")),
    }


def _numbers(state: State, pattern: str) -> list[int]:
    """The numbers of modules in the keys that match `pattern`, which has one group, ascending."""
    return sorted({int(match[1]) for key in state if (match := re.fullmatch(pattern, key))})


def _convolutions(state: State, modules: str = "model") -> dict[int, Tensor]:
    """The kernels in the network's list of modules, by module number."""
    numbers = _numbers(state, rf"{modules}\.(\d+)\.weight")
    kernels = {number: state[f"{modules}.{number}.weight"] for number in numbers}
    return {number: kernel for number, kernel in kernels.items() if kernel.ndim == 4}


def _norm(state: State, bias: str) -> str:
    """The normalisation: only batch norm has weights, and only instance norm follows biased convolutions.

    Instance norms saved by torch before 0.4 have running statistics too.
    """
    if any(f"{key.removesuffix('running_mean')}weight" in state for key in state if "running_mean" in key):
        return "batch"
    return "instance" if bias in state else "none"
