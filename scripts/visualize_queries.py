"""Show which queries QS-Attn chooses in photographs, and what they attend to.

    python scripts/visualize_queries.py --name NAME --input IMAGE_OR_FOLDER    a page of each image
    python scripts/visualize_queries.py --random_weights --input IMAGE         without a checkpoint
    python scripts/visualize_queries.py --name NAME --input IMAGE --figures pdf    figures for a paper too

For each image, OUTPUT/IMAGE.html shows all queries; OUTPUT/IMAGE_layer16_global.pdf is a figure. Layers,
window and number of queries are the run's own unless given. docs/queries.md explains the pictures.
"""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch import nn

from models.domain_networks import DomainResnetGenerator
from models.generator import ResnetBlock, ResnetGenerator
from models.inference import load_generator
from models.layers import initialise
from models.qs_attn import MODES
from models.translator import Translator
from options.saved import options_behind, take_pretrained
from options.train_options import TrainOptions
from scripts.queries.page import write_page
from scripts.queries.view import view_queries
from util.arguments import ArgumentParser, gpu_list, integer, layer_list
from util.device import get_device
from util.errors import UserError, entry_point
from util.image_files import ImageError, list_images
from util.images import to_uint8
from util.pages import printable
from util.translate.photo import output_names, read_photo

FIGURES = ("png", "pdf", "svg", "none")
# What a run that saved no options is taken to have been trained with.
DEFAULTS = {"qs_layers": [12, 16], "num_patches": 256, "qs_window": 7, "qs_pool": 0}


def parse(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(prog="scripts/visualize_queries.py", description=__doc__.splitlines()[0])
    add = parser.add
    add("--name", None, "the run, or a ..._net_G.pth file")
    add("--pretrained", None, "a model that test.py --list_pretrained lists, instead of --name")
    add("--checkpoints_dir", "./checkpoints", "where runs are kept")
    add("--epoch", "latest", "which checkpoint: latest, a number, iter_NUMBER")
    add("--random_weights", False, "instead of a run: a new generator with weights drawn by --seed")
    add("--ngf", 64, "its channels after the first convolution", type=integer(1))
    add("--input", None, "an image or a folder of images", type=Path)
    add("--load_size", None, "first scale the shorter side to this many pixels", type=integer(8), shown="no")
    add("--layers", None, "encoder layers", type=layer_list, shown="the run's --qs_layers, else 12,16")
    add("--modes", list(MODES), "modes of selection", type=_modes)
    add("--num_patches", None, "queries per layer", type=integer(1), shown="the run's, else 256")
    add("--qs_window", None, "side of the local windows, odd", type=integer(1), shown="the run's, else 7")
    add("--qs_pool", None, "average larger maps to this side", type=integer(0), shown="the run's, else 0")
    add("--query", 0, "the query whose row the figures show, by ascending entropy", type=integer(0))
    add("--figures", "none", "format of the figures for a paper (matplotlib)", choices=FIGURES)
    add("--domain", None, "of many: that of the translation beside the queries", shown="the first")
    add("--output", None, "folder to write to", type=Path, shown="./results/NAME/queries_EPOCH")
    add("--gpu_ids", [0], "GPU to use; -1: CPU", type=gpu_list, shown="0")
    add("--seed", 0, "seed of the random positions and weights", type=integer(0))
    opt = Namespace(**{**parser.defaults, **parser.parse_given(argv)})
    if opt.input is None:
        parser.error("--input is missing: an image or a folder of images")
    take_pretrained(parser, opt)
    if (opt.name is None) == (not opt.random_weights):
        parser.error("give either --name NAME, a run, or --random_weights, an untrained generator")
    if opt.qs_window is not None and opt.qs_window % 2 == 0:
        parser.error(f"--qs_window is {opt.qs_window}, but must be odd")
    opt.label = "random weights" if opt.random_weights else f"{opt.name}, epoch {opt.epoch}"
    folder = "random_weights" if opt.random_weights else Path(opt.name).name.removesuffix(".pth")
    opt.output = opt.output or Path("results", folder, f"queries_{opt.epoch}")
    return opt


def _modes(text: str) -> list[str]:
    modes = text.split(",")
    if not set(modes) <= set(MODES):
        raise ArgumentTypeError(f"takes a list of {','.join(MODES)}, not {text!r}")
    return modes


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages and figures that a command line asks for; exit status 1 if an image failed."""
    opt = parse(argv)
    translator = build_translator(opt)
    take_selection_of_the_run(opt, translator.net)
    paths = list_images(opt.input) if opt.input.is_dir() else [opt.input]
    failed = False
    for path, name in zip(paths, output_names(paths), strict=True):
        try:
            photo = read_photo(path, opt.load_size).pixels
        except ImageError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        draw_image(opt, translator, photo, opt.output / name.with_suffix(""), path.name)
    return int(failed)


def build_translator(opt: Namespace) -> Translator:
    """The translator of the run, to one domain, or of a new ResNet generator with `--random_weights`."""
    device = get_device(opt.gpu_ids)
    if not opt.random_weights:
        translator = load_generator(opt.name, opt.checkpoints_dir, opt.epoch, device)
        domain = opt.domain or next(iter(translator.domains), None)
        return translator.with_domain(domain) if domain else translator
    torch.manual_seed(opt.seed)
    return Translator(initialise(ResnetGenerator(ngf=opt.ngf)).eval().to(device), device)


def take_selection_of_the_run(opt: Namespace, net: nn.Module) -> None:
    """Set the layers, window, pooling and number of queries that were not given."""
    saved: dict[str, object] = {}
    if not opt.random_weights:
        saved = options_behind(opt.name, opt.checkpoints_dir, TrainOptions().parser)
    for name, default in DEFAULTS.items():
        flag = name.replace("qs_layers", "layers")
        if getattr(opt, flag) is None:
            setattr(opt, flag, saved.get(name) or default)
    last = last_encoder_layer(net)
    for layer in opt.layers:
        if last < layer < len(net.tap_channels()) and layer not in (saved.get("qs_layers") or ()):
            raise UserError(
                f"layer {layer} is in the decoder: the encoder of this generator has layers 0 to {last}. "
                f"Name some of them, as in --layers {last}"
            )


def last_encoder_layer(net: nn.Module) -> int:
    """The last residual block of a ResNet generator that knows no target; of a U-Net, its last layer."""
    if isinstance(net, DomainResnetGenerator):
        return net.last_encoder_layer
    if not isinstance(net, ResnetGenerator):
        return len(net.tap_channels()) - 1
    return max(number for number, module in enumerate(net.model) if isinstance(module, ResnetBlock))


def draw_image(opt: Namespace, translator: Translator, photo: np.ndarray, stem: Path, name: str) -> None:
    """Write the page and figures of a photograph (H, W, 3) uint8, named after `stem`."""
    height, width = photo.shape[:2]
    net = translator.net
    image = to_input(photo, net.input_nc).to(translator.device)
    selection = opt.num_patches, opt.qs_window, opt.qs_pool
    views = view_queries(net, image, opt.layers, opt.modes, *selection, opt.seed)
    target = to_uint8(translator.run(image))[:height, :width]
    page = stem.with_name(f"{stem.name}.html")
    write_page(views, photo, target, page, f"{name}: queries of {opt.label}")
    print(printable(page))
    for view in views:
        print(f"  layer {view.layer}, {view.mode}: {len(view.indices)} of {view.log_entropy.size} positions")
        if opt.figures != "none":
            from scripts.queries.figure import draw_figure  # matplotlib takes a second to import

            figure = stem.with_name(f"{stem.name}_layer{view.layer}_{view.mode}.{opt.figures}")
            draw_figure(view, photo, target, figure, rank=min(opt.query, len(view.indices) - 1))


def to_input(photo: np.ndarray, channels: int) -> torch.Tensor:
    """A photograph (H, W, 3) uint8 as (1, C, H', W') in [-1, 1], mirrored to sides of multiples of 4."""
    more = [max(8, -(-side // 4) * 4) - side for side in photo.shape[:2]]
    photo = np.pad(photo, ((0, more[0]), (0, more[1]), (0, 0)), mode="symmetric")
    if channels == 1:
        photo = np.asarray(Image.fromarray(photo).convert("L"))[..., None]
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


if __name__ == "__main__":
    sys.exit(main())
