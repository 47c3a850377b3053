"""Show which queries QS-Attn chooses in photographs, and what they attend to.

    python scripts/visualize_queries.py --name NAME --input IMAGE_OR_FOLDER

Each image gives OUTPUT/IMAGE.html, which needs no other file and no network. docs/queries.md explains it.
"""

import base64
import html
import io
import json
import re
import sys
import zlib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.transforms import to_input
from models.inference import load_generator
from models.qs_attn import MODES, select_queries
from models.qs_model import pooled
from options.test_options import with_pretrained
from util.arguments import ArgumentParser, gpu_list, integer, layer_list, some_of
from util.device import get_device
from util.errors import UserError, entry_point
from util.image_files import ImageError, list_images
from util.images import to_uint8
from util.pages import printable
from util.translate import output_names, read_photo

TEMPLATE = Path(__file__).with_suffix(".html")
FLOOR = 1e-5  # smaller attention weights are drawn as this one


def parse(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(prog="scripts/visualize_queries.py", description=__doc__.splitlines()[0])
    add = parser.add
    add("--name", None, "the run, or a ..._net_G.pth file")
    add("--pretrained", None, "a model that test.py --list_pretrained lists, instead of --name")
    add("--checkpoints_dir", "./checkpoints", "where runs are kept")
    add("--epoch", "latest", "which checkpoint: latest, a number, iter_NUMBER")
    add("--input", None, "an image or a folder of images", type=Path)
    add("--load_size", None, "first scale the shorter side to this many pixels", type=integer(8), shown="no")
    add("--layers", None, "encoder layers", type=layer_list, shown="the run's --qs_layers, else 12,16")
    add("--modes", list(MODES), "modes of selection", type=some_of(MODES))
    add("--num_patches", None, "queries per layer", type=integer(1), shown="the run's, else 256")
    add("--domain", None, "of many: that of the translation beside the queries", shown="the first")
    add("--output", None, "folder to write to", type=Path, shown="./results/NAME/queries_EPOCH")
    add("--gpu_ids", [0], "GPU to use; -1: CPU", type=gpu_list, shown="0")
    opt = Namespace(**{**parser.defaults, **with_pretrained(parser.parse_given(argv))})
    if opt.name is None or opt.input is None:
        parser.error("name a run by --name or --pretrained, and an image or a folder by --input")
    if not opt.input.exists():
        parser.error(f"--input {opt.input} does not exist: give an image or a folder, in quotes")
    folder = Path(opt.name).name.removesuffix(".pth")
    opt.output = opt.output or Path("results", folder, f"queries_{opt.epoch}")
    return opt


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages that a command line asks for; exit status 1 if an image failed."""
    opt = parse(argv)
    translator = load_generator(opt.name, opt.checkpoints_dir, opt.epoch, get_device(opt.gpu_ids))
    label = f"{opt.name}, epoch {opt.epoch}"
    if domain := opt.domain or next(iter(translator.domains), None):
        translator = translator.with_domain(domain)
    net, multiple = translator.net, translator.multiple
    if not hasattr(net, "tap_channels"):
        raise UserError(f"the generator of {label} has no layers to choose queries in: name another run")
    trained = vars(translator.opt)
    layers = opt.layers or trained.get("qs_layers") or [12, 16]
    chosen_as = {"window": trained.get("qs_window", 7), "pool": trained.get("qs_pool", 0)}
    chosen_as["num_patches"] = opt.num_patches or trained.get("num_patches", 256)
    paths = list_images(opt.input) if opt.input.is_dir() else [opt.input]
    failed = False
    for path, name in zip(paths, output_names(paths), strict=True):
        try:
            photo = read_photo(path, opt.load_size).pixels
        except ImageError as error:
            print(f"failed: {path}: {error.found}. {error.remedy}", file=sys.stderr)
            failed = True
            continue
        more = [max(8, -(-side // multiple) * multiple) - side for side in photo.shape[:2]]
        padded = np.pad(photo, ((0, more[0]), (0, more[1]), (0, 0)), mode="symmetric")
        image = to_input(torch.from_numpy(padded[None]), channels=translator.input_nc).to(translator.device)
        views = view_queries(net, image, layers, opt.modes, **chosen_as)
        target = to_uint8(translator.run(image))[: photo.shape[0], : photo.shape[1]]
        page = opt.output / name.with_suffix(".html")
        write_page(views, photo, target, page, f"{path.name}: queries of {label}")
        print(printable(page))
        for view in views:
            count = f"{len(view.indices)} of {view.log_entropy.size} positions"
            print(f"  layer {view.layer}, {view.mode}: {count}")
    return int(failed)


# ---- the choice of queries on one image, as arrays; H x W the image, h x w the feature map, N queries ----


@torch.no_grad()
def view_queries(
    net: nn.Module, image: Tensor, layers: Sequence[int], modes: Sequence[str],
    num_patches: int = 256, window: int = 7, pool: int = 0,
) -> list[SimpleNamespace]:  # fmt: skip
    """The choice in an image (1, C, H, W) in [-1, 1], sides multiples of 4, for each layer and mode."""
    last = getattr(net, "last_encoder_layer", len(net.tap_channels()) - 1)
    for layer in layers:
        if not 0 <= layer <= last:
            raise UserError(f"there is no layer {layer}: the generator has layers 0 to {last}")
    views = []
    for layer, whole in zip(layers, net.encode(image, layers), strict=True):
        features = pooled(whole, pool)
        h, w = features.shape[2:]
        vectors = features[0].float().flatten(1)  # (C, hw)
        sizes = image.shape[2:]
        geometry = list(map(axis_geometry, whole.shape[2:], (h, w), sizes))
        for mode in modes:
            selection = select_queries(features, mode, num_patches, window)
            attention = selection.attention[0].float().cpu().numpy()
            view = SimpleNamespace(layer=layer, mode=mode, window=selection.window, geometry=geometry)
            view.log_entropy = MODES[mode].rank(features, window)[0].float().view(h, w).cpu().numpy()
            view.indices = selection.indices[0].cpu().numpy()  # (N,), the least of log_entropy first
            view.chosen = pixels_of(view.indices, w, geometry, sizes)  # (N, 2)
            view.rows = row_maps(attention, view.indices, selection.window, h, w)  # (N, h, w)
            # Dot products are not scaled, so a row often has a single weight above 0; they show what else a
            # query resembles.
            view.scores = (vectors[:, selection.indices[0]].T @ vectors).cpu().numpy()  # (N, hw)
            views.append(view)
    return views


def pixels_of(
    indices: np.ndarray, width: int, geometry: Sequence[tuple[float, float]], sizes: Sequence[int]
) -> np.ndarray:
    """Row and column (N, 2), int64, of the pixels of positions (N,). Those in padding: what they mirror."""
    places = np.stack(np.divmod(indices, width)).astype(float)  # (2, N)
    for axis, (stride, border) in enumerate(geometry):
        places[axis] = np.abs(places[axis] * stride - border)
        places[axis] = sizes[axis] - 1 - np.abs(sizes[axis] - 1 - places[axis])
    return np.rint(places.T).astype(np.int64)


def row_maps(attention: np.ndarray, indices: np.ndarray, window: int | None, h: int, w: int) -> np.ndarray:
    """The rows (N, M) of queries as maps (N, h, w) of the image; weights on padded keys are left out."""
    if window is None:
        return attention.reshape(-1, h, w)
    reach = window // 2
    maps = np.zeros((len(indices), h + 2 * reach, w + 2 * reach), np.float32)
    for row_map, index, weights in zip(maps, indices, attention, strict=True):
        y, x = divmod(index, w)
        row_map[y : y + window, x : x + window] = weights.reshape(window, window)
    return maps[:, reach : reach + h, reach : reach + w]


def axis_geometry(whole: int, cells: int, pixels: int) -> tuple[float, float]:
    """(stride, border) along an axis of a map of `whole` positions, averaged to `cells`.

    Position i lies at pixel stride * i - border, the middle of what it sees: convolutions and blurs keep
    centres. The map is smaller than the image by a whole stride, or larger by its padding (layer 0).
    """
    stride, border = max(1, round(pixels / whole)), max(0, (whole - pixels) // 2)
    average = whole / cells  # positions in one
    return stride * average, border - stride * (average - 1) / 2


# ---- the page: the template with pictures, and with rows of one byte an entry, deflated ----


def write_page(
    views: Sequence[SimpleNamespace], source: np.ndarray, target: np.ndarray, path: Path, title: str
) -> None:
    """Write the page of a photograph and its translation, (H, W, 3) uint8 each."""
    data = {"source": _png(source), "target": _png(target), "views": [_view(view) for view in views]}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    # in one pass, so that a title cannot hold the other placeholder
    parts = {"title": html.escape(printable(title)), "data": text}
    page = re.sub(r"{{(title|data)}}", lambda match: parts[match[1]], TEMPLATE.read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _view(view: SimpleNamespace) -> dict:
    log_entropy = view.log_entropy
    finite = log_entropy[np.isfinite(log_entropy)]
    low, high = np.percentile(finite, (2, 98)) if finite.size else (0.0, 0.0)  # what the colours span
    return {
        **{name: getattr(view, name) for name in ("layer", "mode", "window", "geometry")},
        "grid": log_entropy.shape,
        "chosen": view.chosen.tolist(),
        "logEntropy": [f"{value:.2f}" for value in np.nan_to_num(log_entropy.flat[view.indices])],
        "largest": [f"{value:.2g}" for value in view.rows.max((1, 2))],
        "entropyRange": [f"{high:.2f}", f"{low:.2f}"],
        "entropy": _packed((high - np.nan_to_num(log_entropy, neginf=low)) / max(high - low, 1e-3)),
        "attention": _packed(attention_level(view.rows)),
        "scores": _packed(score_level(view.scores)),
    }


def attention_level(weights: np.ndarray) -> np.ndarray:
    """Attention weights on the logarithmic scale that is drawn: FLOOR is 0, 1 is 1."""
    return 1 - np.log10(np.clip(weights, FLOOR, 1)) / np.log10(FLOOR)


def score_level(scores: np.ndarray) -> np.ndarray:
    """Dot products (..., M) on the linear scale that is drawn: the least of a row is 0, its greatest 1."""
    low, high = scores.min(-1, keepdims=True), scores.max(-1, keepdims=True)
    return (scores - low) / np.maximum(high - low, 1e-12)


def _packed(levels: np.ndarray) -> str:
    """Levels in [0, 1] as bytes from 0 to 255, deflated (zlib), in base64."""
    whole = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
    return base64.b64encode(zlib.compress(whole.tobytes(), 9)).decode("ascii")


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


if __name__ == "__main__":
    sys.exit(main())
