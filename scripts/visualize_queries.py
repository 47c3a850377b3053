"""See which queries QS-Attn chooses in a photograph, and what they attend to.

    python scripts/visualize_queries.py --name NAME --input IMAGE_OR_FOLDER      a figure for each layer and mode, and a page
    python scripts/visualize_queries.py --random_weights --input IMAGE           without a checkpoint
    python scripts/visualize_queries.py --name NAME --input DIR --masks DIR      and how much of the masked body they cover

For each image, OUTPUT/IMAGE.html lets one look through all queries, and OUTPUT/IMAGE_layer16_global.png is a figure.
How to read them stands in docs/queries.md.
"""

from __future__ import annotations

import importlib.util
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # as a file, a script sees only its own folder

import numpy as np
import torch
from PIL import Image
from torch import nn

from models.generator import ResnetGenerator
from models.inference import load_generator
from models.layers.initialisation import initialise
from models.qs_attn import MODES
from models.query_pictures.overview import Coverage, coverage, draw_figure
from models.query_pictures.view import QueryView, view_queries
from scripts.queries.page import write_page
from util.arguments import ArgumentParser, gpu_list, integer, layer_list
from util.device import get_device
from util.errors import UserError, entry_point
from util.image_files import ImageError, list_images, open_rgb
from util.images import to_uint8
from util.translate.photo import output_names, read_photo

FIGURES = ("png", "pdf", "svg", "none")


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """The options. A wrong call exits with status 2."""
    parser = ArgumentParser(prog="scripts/visualize_queries.py", description=(__doc__ or "").split("\n")[0])
    add = parser.add
    add("--name", None, "the run, or a ..._net_G.pth file")
    add("--checkpoints_dir", "./checkpoints", "where runs are kept")
    add("--epoch", "latest", "which checkpoint: latest, a number, iter_NUMBER")
    add("--random_weights", False, "instead of a run: a fresh generator, drawn with --seed")
    add("--ngf", 64, "its channels after the first convolution", type=integer(1))
    add("--input", None, "an image or a folder of images", type=Path)
    add(
        "--load_size",
        None,
        "scale the shorter side to this many pixels first",
        type=integer(8),
        shown="as it is",
    )
    add("--layers", [12, 16], "encoder layers", type=layer_list)
    add("--modes", ["global", "local", "local_global"], "modes of selection", type=_modes)
    add("--num_patches", 256, "queries of a layer", type=integer(1))
    add("--qs_window", 7, "side of the local windows in positions, odd", type=integer(1))
    add("--query", 0, "the query whose row the figures show, by rising entropy", type=integer(0))
    add("--figures", "png", "format of the figures", choices=FIGURES)
    add(
        "--masks", None, "folder of masks, white on the body, named as the images: report coverage", type=Path
    )
    add("--output", None, "folder to write to", type=Path, shown="./results/NAME/queries_EPOCH")
    add("--gpu_ids", [0], "GPU to use; -1: CPU", type=gpu_list, shown="0")
    add("--seed", 0, "seed of the random positions and weights", type=integer(0))
    opt = Namespace(**{**parser.defaults, **parser.parse_given(argv)})
    if opt.input is None:
        parser.error("--input is missing: an image or a folder of images")
    if (opt.name is None) == (not opt.random_weights):
        parser.error("give either --name NAME, a run, or --random_weights, a generator without training")
    if opt.qs_window % 2 == 0:
        parser.error(f"--qs_window is {opt.qs_window}, but must be odd")
    opt.label = "random weights" if opt.random_weights else f"{opt.name}, epoch {opt.epoch}"
    folder = "random_weights" if opt.random_weights else Path(opt.name).name.removesuffix(".pth")
    opt.output = opt.output or Path("results", folder, f"queries_{opt.epoch}")
    return opt


def _modes(text: str) -> list[str]:
    modes = [mode.strip() for mode in text.split(",") if mode.strip()]
    if not modes or not set(modes) <= set(MODES):
        raise ArgumentTypeError(f"takes a list of {', '.join(MODES)}, not {text!r}")
    return list(dict.fromkeys(modes))


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the pictures that the words of a command line ask for; return the exit status, 1 where an image failed."""
    opt = parse(argv)
    if opt.figures != "none" and importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "figures are drawn by matplotlib, which is not installed: pip install matplotlib, or --figures none"
        )
    net = build_net(opt)
    paths = list_images(opt.input) if opt.input.is_dir() else [opt.input]
    masks = find_masks(opt.masks, paths) if opt.masks else {}
    covered: dict[tuple[int, str], list[tuple[Coverage, Coverage]]] = {}
    failed = 0
    for path, name in zip(paths, output_names(paths), strict=True):
        try:
            photo = read_photo(path, opt.load_size).pixels
            mask = read_mask(masks[path], photo) if path in masks else None
        except ImageError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        views = draw_image(opt, net, photo, opt.output / name.with_suffix(""), str(path.name))
        if mask is not None and mask.any():
            for view in views:
                pair = (coverage(view.indices, mask, view.grid), coverage(view.random, mask, view.grid))
                covered.setdefault((view.layer, view.mode), []).append(pair)
    if opt.masks:
        print(coverage_table(covered))
    return 1 if failed else 0


def build_net(opt: Namespace) -> nn.Module:
    """The generator of the run, or a fresh ResNet generator with `--random_weights`."""
    device = get_device(opt.gpu_ids)
    if not opt.random_weights:
        return load_generator(opt.name, opt.checkpoints_dir, opt.epoch, device).net
    torch.manual_seed(opt.seed)
    return initialise(ResnetGenerator(ngf=opt.ngf)).eval().to(device)


def draw_image(opt: Namespace, net: nn.Module, photo: np.ndarray, stem: Path, name: str) -> list[QueryView]:
    """Write the page and the figures of a photograph (H, W, 3) uint8 to files that begin with `stem`; return what they show."""
    height, width = photo.shape[:2]
    image = to_input(photo, net.input_nc).to(next(net.parameters()).device)
    views = view_queries(net, image, opt.layers, opt.modes, opt.num_patches, opt.qs_window, opt.seed)
    with torch.inference_mode():
        target = to_uint8(net(image))[:height, :width]
    page = stem.with_name(f"{stem.name}.html")
    write_page(views, photo, target, page, f"{name}: queries of {opt.label}")
    print(page)
    for view in views if opt.figures != "none" else []:
        figure = stem.with_name(f"{stem.name}_layer{view.layer}_{view.mode}.{opt.figures}")
        draw_figure(view, photo, target, figure, rank=min(opt.query, len(view.indices) - 1))
        print(figure)
    return views


def to_input(photo: np.ndarray, channels: int) -> torch.Tensor:
    """A photograph (H, W, 3) uint8 as a generator takes it: (1, C, H', W') in [-1, 1], mirrored at the right and below until the
    sides are multiples of 4 and not too small for its convolutions."""
    more = [max(8, -(-side // 4) * 4) - side for side in photo.shape[:2]]
    photo = np.pad(photo, ((0, more[0]), (0, more[1]), (0, 0)), mode="symmetric")
    if channels == 1:
        photo = np.asarray(Image.fromarray(photo).convert("L"))[..., None]
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def find_masks(folder: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """The mask of each image that has one: the file of its name, whatever the format. UserError where none has."""
    by_stem = {mask.stem: mask for mask in list_images(folder)}
    found = {path: by_stem[path.stem] for path in paths if path.stem in by_stem}
    if not found:
        raise UserError(
            f"no mask in {folder} is named as an image of --input: {paths[0].stem}.png was looked for, and the like"
        )
    return found


def read_mask(path: Path, photo: np.ndarray) -> np.ndarray:
    """A mask over what the encoder sees of a photograph (H, W, 3): (H', W') bool, scaled and padded as the photograph is."""
    mask = open_rgb(path).convert("L").resize(photo.shape[1::-1], Image.Resampling.BILINEAR)
    return (to_input(np.asarray(mask.convert("RGB")), 1)[0, 0] > 0).numpy()


def coverage_table(covered: dict[tuple[int, str], list[tuple[Coverage, Coverage]]]) -> str:
    """Means over the images, for each layer and mode, beside those of random positions."""
    if not covered:
        return "coverage: no mask shows a body"
    images = len(next(iter(covered.values())))
    lines = [
        f"share of positions on the body, mean over {images} image{'s' * (images > 1)}",
        f"{'layer':>5}  {'mode':<12}  {'queries':>8}  {'area':>7}  {'ratio':>5}  {'random':>7}  {'ratio':>5}",
    ]
    for (layer, mode), pairs in covered.items():
        chosen, random = (Coverage(*np.mean(side, axis=0)) for side in zip(*pairs, strict=True))
        lines.append(
            f"{layer:>5}  {mode:<12}  {chosen.on_body:8.1%}  {chosen.area:7.1%}  {chosen.ratio:5.2f}"
            f"  {random.on_body:7.1%}  {random.ratio:5.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
