"""Translate images of any size with a trained generator, from Python:

    from PIL import Image
    from models.inference import load_generator

    translate = load_generator("horse2zebra_qsattn_global")  # a run, or the path of a ..._net_G.pth
    translate(Image.open("horse.jpg")).save("zebra.png")

A model with styles (MUNIT) also takes the style of a translation: a seed, an image, or its numbers:

    translate(image, style=3)
    translate(image, style=Image.open("another_zebra.jpg"))

One with many domains takes the name of the target:

    translate.domains  # ("cat", "dog", "wild")
    translate(image, domain="dog")

test.py translates with the same `Translator`.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch

from data.transforms import LATE_RESIZE
from models import MODELS, create_model, option_rows, require_model
from models.architecture import architecture, kind
from models.attention.fusion import GuidedTranslator
from models.build import build_generator, conditional_generator, size_multiple
from models.domain_networks import StarGANGenerator
from models.munit_model import munit_generator
from models.munit_networks import StyledTranslator
from models.pretrained import find_run
from models.translator import Translator
from models.weights import bare_generator, checkpoint_file, load_weights, weights_file
from util.arguments import Option, integer
from util.errors import UserError
from util.run.saved_options import FILE, checked, saved_options
from util.weight_files import read_tensors

# The options of translating that every model has.
CHANNELS = {"type": integer(1), "choices": (1, 3)}
COMMON = (
    Option("direction", "AtoB", "", choices=("AtoB", "BtoA")),
    Option("input_nc", 3, "", **CHANNELS),
    Option("output_nc", 3, "", **CHANNELS),
    Option("eval", True, ""),
)

WEIGHTS_FILE = re.compile(r"(.+)_net_(\w+)\.pth")  # epoch, network


def load_generator(
    name_or_path: str | os.PathLike,
    checkpoints_dir: str | os.PathLike = "./checkpoints",
    epoch: str | int = "latest",
    device: torch.device | str | None = None,
    direction: str | None = None,
) -> Translator:
    """The translator of a run, of a pretrained model, or of a generator's weights file.

    `test.py --list_pretrained` lists the pretrained models; those that others publish are fetched. A file,
    `*.pth` or `*.safetensors`, may come from the released code, CUT or CycleGAN; a `*.pt` file holds both
    generators of MUNIT, as its released code saves them. A run is built by its saved options; without options
    the architecture is read off the weights.

    Args:
        device: None for a GPU if there is one.
        direction: "AtoB" or "BtoA", for a run that learns both; None: the one it was trained in.

    Raises:
        UserError: there is no such run or file, or it holds no generator.
    """
    device = torch.device(device) if device is not None else _best_device()
    path, epoch = Path(name_or_path), str(epoch)
    if path.suffix == ".pt":
        return _munit({"gen_a": (path, "a"), "gen_b": (path, "b")}, direction or "AtoB", device)
    file = path.suffix in (".pth", ".safetensors")
    folder, network = (path.parent if file else find_run(path, checkpoints_dir)), None
    if file and (match := WEIGHTS_FILE.fullmatch(path.name)):
        epoch, network = match.groups()
    opt = run_options(folder)
    if opt is None or (file and not network):
        if not file:
            network = bare_generator(folder, epoch, direction or "AtoB")
            path = checkpoint_file(folder.parent, folder.name, epoch, network)
        return _of_weights(path, device)
    opt.isTrain, opt.gpu_ids, opt.precision, opt.channels_last = False, [], "fp32", False
    opt.checkpoints_dir, opt.name, opt.epoch = str(folder.parent), folder.name, epoch
    opt.direction = direction or opt.direction
    there = directions(opt)
    if opt.direction not in there:
        raise UserError(f"{folder} was trained {opt.trained_direction} alone: leave direction out")
    if file:  # its name says which direction it is for
        of_file = [direction for direction, networks in there.items() if networks[0] == network]
        if not of_file:
            return _of_weights(path, device)
        opt.direction = of_file[0]
    return translator_of_run(opt, device)


def run_options(folder: Path) -> Namespace | None:
    """What translating with the run in `folder` takes from its options; None where it has saved none."""
    saved = saved_options(folder)
    if saved is None:
        return None
    require_model(saved.get("model"), folder)
    model = saved["model"]
    rows = {**option_rows(model), **{row.name: row for row in COMMON}}
    defaults = {**{name: row.default for name, row in rows.items()}, **MODELS[model].defaults}
    opt = Namespace(**{**defaults, **checked(saved, rows, folder / FILE)}, model=model)
    opt.trained_direction, opt.translate_size = opt.direction, translate_size(saved)
    return opt


def final_load_size(saved: Mapping[str, object]) -> int:
    """The load_size that images had at the end of a training, given its options, for whole test images."""
    crop_size = saved.get("crop_size", 256)
    in_iterations = saved.get("n_iterations") or saved.get("n_iterations_decay")
    crops_ended = saved.get("n_epochs_decay") and not (in_iterations or saved.get("crop_late"))
    mode = saved.get("preprocess", "resize_and_crop")
    return crop_size if crops_ended and mode in LATE_RESIZE else saved.get("load_size", crop_size)


def translate_size(saved: Mapping[str, object]) -> int | None:
    """The shorter side that a run with these options translates photographs at, in pixels; None: any.

    It is the run's own `translate_size`, else that of its training images.
    """
    if saved.get("translate_size"):
        return saved["translate_size"]
    mode = saved.get("preprocess", "resize_and_crop")
    if mode == "resize_and_crop":
        return final_load_size(saved)
    if mode.startswith("scale_width"):
        return min(saved.get("load_size", 256), saved.get("crop_size", 256))
    return None


def directions(opt: Namespace) -> dict[str, tuple[str, ...]]:
    """The directions that a run translates in, that of its training first, with the networks each takes."""
    trained = getattr(opt, "trained_direction", opt.direction)
    found: dict[str, tuple[str, ...]] = {}
    for direction in (trained, "AtoB", "BtoA"):
        asked = Namespace(**{**vars(opt), "trained_direction": trained, "direction": direction})
        networks = MODELS[opt.model].translating(asked)
        if networks not in found.values():
            found[direction] = networks
    return found


def translator_of_run(opt: Namespace, device: torch.device | None = None) -> Translator:
    """The translator that the options of test.py name; with `--eval false` its networks train."""
    model = create_model(opt)
    for name, net in model.networks.items():
        load_weights(net, checkpoint_file(opt.checkpoints_dir, opt.name, opt.epoch, name), opt)
    return Translator(
        model.translator().train(not opt.eval).requires_grad_(False).to(device or model.device),
        device or model.device,
        multiple=model.size_limits(opt)[0],
        input_nc=opt.input_nc,
        precision=opt.precision,
        channels_last=opt.channels_last,
        translate_size=opt.translate_size,
        domains=getattr(opt, "domains", ()),
    )


def _of_weights(path: Path, device: torch.device) -> Translator:
    """A generator whose options are read off its weights, in evaluation mode."""
    state = read_tensors(path)
    found = architecture(state)
    if "style_dim" in found:  # MUNIT translates with the other domain's generator too
        match = WEIGHTS_FILE.fullmatch(path.name)
        epoch, network = match.groups() if match else ("latest", "gen_b")
        files = {name: (weights_file(path.parent, epoch, name), None) for name in ("gen_a", "gen_b")}
        return _munit(files, "BtoA" if network == "gen_a" else "AtoB", device)
    if not {"netG", "g_repeat_num"} & found.keys():
        raise UserError(f"{path} holds {kind(state)}, not a generator: give a ..._net_G.pth")
    opt = Namespace(**{"no_dropout": True, "domains": [], **found}, init_type="xavier", init_gain=0.02)
    # alpha shows in the weights; another fusion is known from a run's options only
    guided = {"fusion": "alpha", "stage": "F0"} if "attention_fusion" in found else {}
    if "netG" not in found:
        net = StarGANGenerator(opt.input_nc, opt.output_nc, len(opt.domains), opt.ngf, opt.g_repeat_num)
    elif opt.domains:
        net = conditional_generator(opt, len(opt.domains))
    else:
        net = build_generator(opt, **guided)
    load_weights(net, path)
    net = GuidedTranslator(net) if guided else net
    net.to(device).eval().requires_grad_(False)
    multiple = size_multiple(found.get("netG", ""))
    return Translator(net, device, multiple=multiple, input_nc=opt.input_nc, domains=opt.domains)


def _munit(files: dict[str, tuple[Path, str | None]], direction: str, device: torch.device) -> Translator:
    """MUNIT's translator from the files (and parts of them) of "gen_a" and "gen_b", options read off them."""
    nets = []
    for name in ("gen_a", "gen_b") if direction == "AtoB" else ("gen_b", "gen_a"):
        path, part = files[name]
        found = architecture(read_tensors(path, part))
        if "style_dim" not in found:
            raise UserError(f"{path} holds no generator of MUNIT's released code")
        nets.append(munit_generator(Namespace(**found)))
        load_weights(nets[-1], path, part=part)
    source, target = nets
    net = StyledTranslator(source, target).to(device).eval().requires_grad_(False)
    return Translator(net, device, multiple=source.size_multiple, input_nc=found["input_nc"])


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
