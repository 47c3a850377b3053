"""Weights in the released format: `{latest|N|iter_N}_net_NAME.pth`, each a bare state dict of CPU tensors.

Their keys are those of the released QS-Attn and CUT code, so either code loads the other's files.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from util.arguments import as_text
from util.errors import UserError
from util.files import write_atomically
from util.weight_files import read_tensors

State = Mapping[str, Tensor]

MOST_KEYS = 4  # that a message lists


def weights_file(folder: Path, epoch: str, network: str) -> Path:
    """The file of a network's weights of `epoch`: "latest", "5", "iter_5000", or "*" for a glob."""
    return folder / f"{epoch}_net_{network}.pth"


def bare_generator(folder: Path, epoch: str, direction: str) -> str:
    """The generator of a folder without saved options: CycleGAN's or MUNIT's if there is one, else G."""
    names = ("G_B", "gen_a") if direction == "BtoA" else ("G_A", "gen_b")
    return next((name for name in names if weights_file(folder, epoch, name).is_file()), "G")


def checkpoint_file(checkpoints_dir: str | Path, name: str, epoch: str, network: str = "G") -> Path:
    """The weights file of a run, or UserError with the epochs or runs that there are."""
    root, run = Path(checkpoints_dir), Path(checkpoints_dir, name)
    path = weights_file(run, epoch, network)
    if path.is_file():
        return path
    end = weights_file(run, "", network).name
    if run.is_dir():
        epochs = [file.name.removesuffix(end) for file in run.glob(f"*{end}")]
        epochs.sort(key=lambda epoch: (not epoch.isdecimal(), epoch.zfill(12)))
        there = f"--epoch can be {', '.join(epochs)}" if epochs else "the run has saved no weights yet"
    else:
        runs = sorted({file.parent.relative_to(root).as_posix() for file in root.glob(f"**/*{end}")})
        there = f"--name can be {', '.join(runs[:20])}" if runs else "train a run with train.py"
        there += "; test.py --list_pretrained lists models that need no training"
    raise UserError(f"there is no checkpoint {path}: {there}")


def load_weights(net: nn.Module, path: str | Path, part: str | None = None) -> None:
    """Load a released-format file, or the `part` of it (see `read_tensors`), into a network; or UserError."""
    state = read_tensors(path, part)
    if problem := misfit(net, state):
        raise UserError(f"{path} does not fit the network: {problem}")
    net.load_state_dict(state, strict=False)


def misfit(net: nn.Module, state: State) -> str | None:
    """Why a state dict does not fit a network, in terms of options; None if it fits."""
    own = net.state_dict()
    differ = [key for key in {**own, **state} if _shape(own, key) != _shape(state, key)]
    differ = [key for key in differ if not _may_differ(key, own, state)]
    if not differ:
        return None
    found, asked = architecture(state), architecture(own)
    names = [name for name in asked if name in found and found[name] != asked[name]]
    if names and found.get("model") == asked.get("model"):
        these, those = (" ".join(f"--{n} {as_text(options[n])}" for n in names) for options in (asked, found))
        return f"these options are {these}; give those of its training, {those}"
    more = f" and {len(differ) - MOST_KEYS} more" if len(differ) > MOST_KEYS else ""
    return f"the shapes differ, or one has no such tensor: {', '.join(differ[:MOST_KEYS])}{more}"


def _shape(state: State, key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) or (1,) if key in state else None  # torch 0.3 had no tensors without sides


def _may_differ(key: str, own: State, state: State) -> bool:
    """Older versions of torch saved no counters, and statistics of instance norms; filters are constants."""
    if key in own:
        return key not in state and key.endswith((".filt", ".num_batches_tracked"))
    return key.endswith((".running_mean", ".running_var", ".num_batches_tracked"))


def save_tensors(state: State, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a state dict to `path` as contiguous CPU tensors, atomically; floating-point ones as `dtype`."""
    plain = {}
    for key, value in state.items():
        own = dtype if value.is_floating_point() else value.dtype
        # A copy: torch.save would write the whole storage of a view.
        plain[key] = value.detach().to("cpu", own).clone(memory_format=torch.contiguous_format)
    write_atomically(Path(path), lambda temporary: torch.save(plain, temporary))


def architecture(state: State) -> dict[str, object]:
    """The options that built a generator, as far as its weights show them, "model" where others lack such
    networks; {} for other networks. Keys number the modules, with gaps where one has no weights.
    """
    readers = {"enc_content.": _munit, ".main.0.": _stargan, "model.model.0.": _unet, ".conv_block.": _resnet}
    try:
        for sign, read in readers.items():
            if any(sign in key for key in state):
                return read(state)
    except (KeyError, IndexError, ValueError):  # similar names, but other modules
        pass
    return {}


def _resnet(state: State) -> dict[str, object]:
    blocks = _numbers(state, r"model\.(\d+)\.conv_block\..*")
    last = _numbers(state, r"model\.(\d+)\.weight")[-1]
    found = {
        "netG": f"resnet_{len(blocks)}blocks",
        **_first_convolution(state["model.1.weight"]),
        "output_nc": state[f"model.{last}.weight"].shape[0],
        "normG": _norm(state, "model.1.bias"),
        "no_dropout": f"model.{blocks[0]}.conv_block.5.weight" in state,  # a Dropout moves it to 6
        "no_antialias": blocks[0] == 10,  # two BlurDownsamples move the first block to 12
        "no_antialias_up": f"model.{blocks[-1] + 1}.weight" in state,  # no BlurUpsample there
    }
    if "domains.weight" in state:
        count, dim = state["domains.weight"].shape
        found |= {"model": "qs_multi", "domains": list(map(str, range(count))), "domain_dim": dim}
    return found


def _unet(state: State) -> dict[str, object]:
    depth = max(key.count("model.") for key in state) - 1  # the way into the U-Net itself is one more
    return {
        "netG": f"unet_{2**depth}",
        **_first_convolution(state["model.model.0.weight"]),
        "output_nc": state["model.model.3.weight"].shape[1],
        "normG": _norm(state, "model.model.0.bias"),
    }


def _first_convolution(kernel: Tensor) -> dict[str, object]:
    """Images have 1 or 3 channels; a generator that takes attention as a channel has one more."""
    width, channels = kernel.shape[:2]
    if channels % 2:
        return {"ngf": width, "input_nc": channels}
    return {"ngf": width, "input_nc": channels - 1, "model": "asgit", "attention_fusion": "alpha"}


def _norm(state: State, bias: str) -> str:
    """Only instance norm follows biased convolutions; some files have statistics of it too."""
    if bias in state:
        return "instance"
    return "batch" if any(key.endswith("running_mean") for key in state) else "none"


def _stargan(state: State) -> dict[str, object]:
    first, last = state["main.0.weight"], _numbers(state, r"main\.(\d+)\.weight")[-1]
    channels = state[f"main.{last}.weight"].shape[0]  # of images; the first convolution takes the domains too
    return {
        "model": "stargan",
        "ngf": first.shape[0],
        "input_nc": channels,
        "output_nc": channels,
        "g_repeat_num": len(_numbers(state, r"main\.(\d+)\.main\.0\.weight")),
        "domains": list(map(str, range(first.shape[1] - channels))),
    }


def _munit(state: State) -> dict[str, object]:
    first, mlp = state["enc_content.model.0.conv.weight"], state["mlp.model.0.fc.weight"]
    layers = _numbers(state, r"dec\.model\.(\d+)\.conv\.weight")
    return {
        "model": "munit",
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
