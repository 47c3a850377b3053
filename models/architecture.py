"""Reads from a state dict which network it belongs to, in terms of the options that build that network.

The released key names number the modules. Shapes and gaps between the numbers determine the rest: how many
residual blocks, whether a Dropout or a blur lies between two convolutions, which normalisation follows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

Architecture = dict[str, object]  # option -> value; "network" says what kind of network it is

KINDS = {
    "resnet": "a ResNet generator (--netG resnet_9blocks and its siblings)",
    "unet": "a U-Net generator (--netG unet_256 or unet_128)",
    "patchgan": "a PatchGAN discriminator (--netD basic or n_layers)",
    "pixel": "a per-pixel discriminator (--netD pixel)",
    "posthoc": "a PatchGAN discriminator with post hoc attention (--netD posthoc_attn)",
    "trainable": "a PatchGAN discriminator with trainable attention (--netD trainable_attn)",
    "heads": "heads of features (netF)",
    "maps": "convolutions of self-similarity maps (netF of --model sesim --learned_attn)",
    "munit_generator": "a generator of MUNIT (--model munit)",
    "munit_discriminator": "a discriminator of MUNIT (--model munit)",
    "unknown": "no network of this project",
}


def architecture(state: Mapping[str, Tensor]) -> Architecture:
    """The options that built the network of a state dict with the released key names.

    For any other state dict it is {"network": "unknown"}.
    """
    patterns = {
        "munit_generator": r"enc_content\.model\.\d+\.conv\.weight",
        "munit_discriminator": r"cnns\.\d+\.\d+\.conv\.weight",
        "heads": r"mlp_\d+\.0\.weight",
        "maps": r"conv_\d+\.0\.weight",
        "pixel": r"net\.\d+\.weight",
        "unet": r"model\.model\.\d+\.weight",
        "resnet": r"model\.\d+\.conv_block\.\d+\.weight",
        "patchgan": r"model\.\d+\.weight",
        "posthoc": r"model_p1\.\d+\.weight",
        "trainable": r"mask_brunch\.d1\.weight",
    }
    network = next(
        (kind for kind, name in patterns.items() if any(re.fullmatch(name, key) for key in state)), "unknown"
    )
    readers = {
        "resnet": _resnet,
        "unet": _unet,
        "patchgan": _patchgan,
        "pixel": _pixel,
        "posthoc": _posthoc,
        "trainable": _trainable,
        "heads": _heads,
        "munit_generator": _munit_generator,
        "munit_discriminator": _munit_discriminator,
    }
    try:
        details = readers[network](state) if network in readers else {}
    except (KeyError, IndexError):  # similar names, but other modules
        network, details = "unknown", {}
    return {"network": network, **details}


def differences(found: Architecture, asked: Architecture) -> list[str]:
    """One sentence per difference between a checkpoint and the options, with the option that removes it."""
    if found["network"] != asked["network"]:
        return [
            f"the file holds {KINDS[found['network']]}, but what is asked for is {KINDS[asked['network']]}"
        ]
    return [
        f"the checkpoint has {_words(option, found[option])}, but {_flag(option, asked[option])} asks for "
        f"{_words(option, asked[option])}: give {_flag(option, found[option])}"
        for option in asked
        if found[option] != asked[option]
    ]


def _resnet(state: Mapping[str, Tensor]) -> Architecture:
    blocks = sorted({int(match[1]) for key in state if (match := re.match(r"model\.(\d+)\.conv_block", key))})
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
    }


def _unet(state: Mapping[str, Tensor]) -> Architecture:
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
    alpha = channels % 2 == 0
    return {"input_nc": channels - alpha, "attention_fusion": "alpha" if alpha else None}


def _patchgan(state: Mapping[str, Tensor]) -> Architecture:
    convolutions = _convolutions(state)
    second = sorted(convolutions)[1]
    return {
        "n_layers_D": len(convolutions) - 2,
        "ndf": convolutions[0].shape[0],
        "output_nc": convolutions[0].shape[1],
        "normD": _norm(state, f"model.{second}.bias"),
        "no_antialias": second == 2,  # a BlurDownsample moves it to 3
    }


def _posthoc(state: Mapping[str, Tensor]) -> Architecture:
    return _attending(state, state["model_p1.0.weight"], "model_p1")


def _trainable(state: Mapping[str, Tensor]) -> Architecture:
    body = {
        key: value for key, value in state.items() if "mask_brunch" not in key
    }  # whose norms are batch norms
    return _attending(body, state["fe.0.weight"], "trunk_brunch")


def _attending(state: Mapping[str, Tensor], first: Tensor, part: str) -> Architecture:
    """A PatchGAN in parts: its first kernel, and the part that ends with the last two halvings."""
    last, before = sorted(_convolutions(state, part), reverse=True)[:2]
    return {
        "ndf": first.shape[0],
        "output_nc": first.shape[1],
        "normD": _norm(state, f"{part}.{last}.bias"),
        "no_antialias": last - before == 3,  # a BlurDownsample stands between them
    }


def _pixel(state: Mapping[str, Tensor]) -> Architecture:
    ndf, channels = state["net.0.weight"].shape[:2]
    return {"ndf": ndf, "output_nc": channels, "normD": _norm(state, "net.2.bias")}


def _heads(state: Mapping[str, Tensor]) -> Architecture:
    numbers = sorted(int(match[1]) for key in state if (match := re.fullmatch(r"mlp_(\d+)\.0\.weight", key)))
    first = [state[f"mlp_{number}.0.weight"] for number in numbers]
    return {"nce_layers": [weight.shape[1] for weight in first], "netF_nc": first[0].shape[0]}


def _munit_generator(state: Mapping[str, Tensor]) -> Architecture:
    first = state["enc_content.model.0.conv.weight"]
    layers = sorted(_numbers(state, r"dec\.model\.(\d+)\.conv\.weight"))
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


def _munit_discriminator(state: Mapping[str, Tensor]) -> Architecture:
    first = state["cnns.0.0.conv.weight"]
    return {
        "ndf": first.shape[0],
        "input_nc": first.shape[1],
        "n_layer": len(_numbers(state, r"cnns\.0\.(\d+)\.conv\.weight")),
        "num_scales": len(_numbers(state, r"cnns\.(\d+)\.0\.conv\.weight")),
    }


def _numbers(state: Mapping[str, Tensor], pattern: str) -> set[int]:
    """The numbers of modules in the keys that match `pattern`, which has one group."""
    return {int(match[1]) for key in state if (match := re.fullmatch(pattern, key))}


def _convolutions(state: Mapping[str, Tensor], part: str = "model") -> dict[int, Tensor]:
    """The kernels in the network's list of modules `part`, by module number."""
    matches = ((re.fullmatch(rf"{part}\.(\d+)\.weight", key), value) for key, value in state.items())
    return {int(match[1]): value for match, value in matches if match and value.ndim == 4}


def _norm(state: Mapping[str, Tensor], bias: str) -> str:
    """The normalisation: only instance norm follows convolutions with a bias; only batch norm has state."""
    if any(key.endswith("running_mean") for key in state):
        return "batch"
    return "instance" if bias in state else "none"


def _words(option: str, value: object) -> str:
    """A value of an option as a thing a network has."""
    if option == "netG":
        if value.startswith("unet_"):
            return f"a U-Net for multiples of {value.removeprefix('unet_')} pixels"
        return f"{value.removeprefix('resnet_').removesuffix('blocks')} residual blocks"
    if option == "nce_layers":
        return f"{len(value)} heads, for layers of {', '.join(map(str, value))} channels"
    if option == "attention_fusion":
        return "an input channel for attention" if value else "no input channel for attention"
    if option.startswith("no_"):
        thing = {
            "no_dropout": "dropout",
            "no_antialias": "blurred downsampling",
            "no_antialias_up": "blurred upsampling",
        }
        return f"{'no ' if value else ''}{thing[option]}"
    things = {
        "ngf": "{} channels after its first convolution",
        "ndf": "{} channels after its first convolution",
        "input_nc": "{} input channels",
        "output_nc": "{} channels of translated images",
        "normG": "{} normalisation",
        "normD": "{} normalisation",
        "n_layers_D": "{} halvings",
        "netF_nc": "heads of width {}",
        "mlp_dim": "an MLP of width {}",
        "style_dim": "styles of {} numbers",
        "n_downsample": "{} halvings of its content",
        "n_res": "{} residual blocks",
        "n_layer": "{} halvings",
        "num_scales": "{} scales",
    }
    return things[option].format("no" if value == "none" else value)


def _flag(option: str, value: object) -> str:
    """The option as it is typed."""
    if option == "n_layers_D":
        return "--netD basic" if value == 3 else f"--netD n_layers --n_layers_D {value}"
    if option == "attention_fusion":
        return "--attention_fusion alpha" if value else "another --attention_fusion"
    if option == "nce_layers":
        return f"--nce_layers with {len(value)} such layers (and the --ngf it was trained with)"
    return f"--{option} {str(value).lower()}"
