"""Pictures of the chosen queries: a panel for the monitors of a training, a figure for a paper, and a count of what they cover.

`query_overview` needs NumPy, torch and Pillow; `draw_figure` also matplotlib.

Shapes: H x W the image, h x w the feature map, N queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from models.query_pictures.view import QueryView, pixel_centres, upsample, view_queries
from util.images import to_uint8

# Colour maps of even perceptual steps, by nine anchors (viridis and magma): dark is little, bright is much.
RAMPS: dict[str, np.ndarray] = {
    "entropy": np.float32(
        [
            (68, 1, 84),
            (71, 45, 123),
            (59, 82, 139),
            (44, 114, 142),
            (33, 145, 140),
            (40, 174, 128),
            (94, 201, 98),
        ]
        + [(173, 220, 48), (253, 231, 37)]
    ),
    "attention": np.float32(
        [
            (0, 0, 4),
            (28, 16, 68),
            (79, 18, 123),
            (129, 37, 129),
            (181, 54, 122),
            (229, 80, 100),
            (251, 135, 97),
        ]
        + [(254, 194, 135), (252, 253, 191)]
    ),
}
CHOSEN, RANDOM, CURRENT = (255, 209, 64), (86, 180, 233), (255, 255, 255)  # colours of markers
FLOOR = 1e-5  # the least attention weight that shows


class Coverage(NamedTuple):
    """Shares of the chosen queries and of all positions that lie on a body, each in [0, 1]."""

    on_body: float
    area: float

    @property
    def ratio(self) -> float:
        """How many times more queries lie on the body than chance would put there; NaN without a body."""
        return self.on_body / self.area if self.area else float("nan")


def coverage(
    indices: np.ndarray | torch.Tensor, mask: np.ndarray, feature_shape: tuple[int, int]
) -> Coverage:
    """How much of a selection lies on the body.

    Args:
        indices: (N,) positions of a feature map.
        mask: (H, W), true on the body, of the image the encoder saw.
        feature_shape: (h, w) of the map.
    """

    def share(positions: np.ndarray) -> float:
        rows, columns = pixel_centres(positions, feature_shape, mask.shape).T
        return float(np.mean(mask[rows, columns] > 0))

    return Coverage(share(np.asarray(indices)), share(np.arange(feature_shape[0] * feature_shape[1])))


def colour(values: np.ndarray, ramp: str) -> np.ndarray:
    """Values (...) in [0, 1] as colours (..., 3) float32 in [0, 255]; `ramp` is a key of RAMPS."""
    anchors = RAMPS[ramp]
    at = np.clip(values, 0, 1)[..., None] * (len(anchors) - 1)
    low = np.clip(np.floor(at).astype(int)[..., 0], 0, len(anchors) - 2)
    return anchors[low] + (at - low[..., None]) * (anchors[low + 1] - anchors[low])


def entropy_range(log_entropy: np.ndarray) -> tuple[float, float]:
    """The values of log H between which colours change: without the rarest 2 % at either end, and never empty."""
    finite = log_entropy[np.isfinite(log_entropy)]
    low, high = np.percentile(finite, (2, 98)) if finite.size else (0.0, 0.0)
    return float(low), float(max(high, low + 1e-3))


def attention_level(weights: np.ndarray) -> np.ndarray:
    """Attention weights on the logarithmic scale they are shown by: FLOOR is 0, 1 is 1."""
    return 1 - np.log10(np.clip(weights, FLOOR, 1)) / np.log10(FLOOR)


def score_level(scores: np.ndarray) -> np.ndarray:
    """Dot products (..., M) on the linear scale they are shown by: the least of a row is 0, its greatest is 1."""
    low, high = scores.min(-1, keepdims=True), scores.max(-1, keepdims=True)
    return (scores - low) / np.maximum(high - low, 1e-12)


def faded(image: np.ndarray, share: float = 0.5, light: float = 0.72) -> np.ndarray:
    """A photograph (H, W, 3) uint8 behind marks: `share` of its colour taken away, darkened to `light`."""
    grey = image.astype(np.float32).mean(2, keepdims=True)
    return ((image + share * (grey - image)) * light).astype(np.uint8)


def entropy_picture(view: QueryView, image: np.ndarray) -> np.ndarray:
    """log H in colour, the least brightest, over the grey photograph (H, W, 3): (H, W, 3) uint8."""
    low, high = entropy_range(view.log_entropy)
    level = (high - upsample(np.nan_to_num(view.log_entropy, neginf=low), view.image_shape, smooth=True)) / (
        high - low
    )
    level = level[: image.shape[0], : image.shape[1]]
    return (0.8 * colour(level, "entropy") + 0.2 * faded(image, 1, 1)).clip(0, 255).astype(np.uint8)


def heat_picture(view: QueryView, level: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Levels (h, w) in [0, 1] as heat that hides a dark grey photograph (H, W, 3) the more, the hotter: (H, W, 3) uint8."""
    level = upsample(level, view.image_shape, smooth=False)[: image.shape[0], : image.shape[1]]
    cover = np.clip(1.6 * level, 0, 1)[..., None]
    return (
        (cover * colour(level, "attention") + (1 - cover) * faded(image, 1, 0.45))
        .clip(0, 255)
        .astype(np.uint8)
    )


@torch.no_grad()
def query_overview(
    netG: nn.Module,
    image: torch.Tensor,
    layers: Sequence[int],
    mode: str,
    num_patches: int = 256,
    window: int = 7,
) -> np.ndarray:
    """What the selection does with a source image, for the monitors: the chosen queries, and beside them the map of log H.

    Args:
        netG: the generator; image (1, C, H, W) in [-1, 1] on any device, H and W multiples of 4.
        layers: one row of pictures for each; mode, num_patches, window: as for `select_queries`.

    Returns:
        uint8 of shape (rows * 2H + gaps, 2 * 2W + gap, 3).
    """
    picture = to_uint8(image)
    rows = []
    for view in view_queries(netG, image, layers, [mode], num_patches, window):
        queries = mark_positions(faded(picture), view, view.indices, CHOSEN)
        entropy = Image.fromarray(entropy_picture(view, picture)).resize(
            queries.shape[1::-1], Image.Resampling.BICUBIC
        )
        gap = np.full((len(queries), 8, 3), 255, np.uint8)
        rows += [
            np.full((8, 2 * queries.shape[1] + 8, 3), 255, np.uint8),
            np.hstack([queries, gap, np.asarray(entropy)]),
        ]
    return np.vstack(rows[1:])


def mark_positions(
    image: np.ndarray, view: QueryView, indices: np.ndarray, fill: tuple[int, int, int]
) -> np.ndarray:
    """A picture (H, W, 3) at twice its size with an edged dot at each position, the first on top: (2H, 2W, 3) uint8."""
    scale = 4  # drawn at four times the size and halved, which smooths the edges
    canvas = Image.fromarray(image.astype(np.uint8)).resize(
        (image.shape[1] * scale, image.shape[0] * scale), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(canvas)
    radius = scale * max(1.0, min(image.shape[:2]) / 140)
    for y, x in pixel_centres(indices[::-1], view.grid, view.image_shape):
        cy, cx = (y + 0.5) * scale, (x + 0.5) * scale
        box = (cx - radius, cy - radius, cx + radius, cy + radius)
        draw.ellipse(box, fill=fill, outline=(20, 20, 20), width=max(1, round(radius / 4)))
    return np.asarray(canvas.resize((image.shape[1] * 2, image.shape[0] * 2), Image.Resampling.LANCZOS))


def draw_figure(
    view: QueryView,
    source: np.ndarray,
    target: np.ndarray,
    path: str | Path,
    rank: int = 0,
    width: float = 9.6,
) -> None:
    """Write a view as a figure; the file's ending chooses the format, PNG or one of vectors (.pdf, .svg).

    Above the source: itself, log H, the chosen queries, and of one query the attention row and the dot products it comes
    from. Below the translation: itself, the source with CUT's random positions, and the same queries and row.

    Args:
        source, target: the photograph and its translation, (H, W, 3) uint8 each.
        rank: of the query whose row is shown, from 0.
        width: of the figure in inches.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    margin, gap, title, legend = 0.12, 0.1, 0.24, 0.62  # inches
    side = (width - 2 * margin - 4 * gap) / 5
    tall = side * source.shape[0] / source.shape[1]
    height = 2 * (tall + title) + legend
    level, scores = attention_level(view.row_map(rank)), score_level(view.scores[rank]).reshape(view.grid)
    count = len(view.indices)
    panels = [  # title, picture, positions, their colour, whether the current query is marked
        ("Source $x$", source, None, None, False),
        (r"Entropy of each row, $\log H_i$", entropy_picture(view, source), None, None, False),
        (f"{count} chosen queries", faded(source), view.indices, CHOSEN, True),
        (f"Attention row of query {rank}", heat_picture(view, level, source), None, None, True),
        (f"Dot products of query {rank}", heat_picture(view, scores, source), None, None, True),
        ("Translation $G(x)$", target, None, None, False),
        (f"{len(view.random)} random positions (CUT)", faded(source), view.random, RANDOM, False),
        ("The same queries", faded(target), view.indices, CHOSEN, True),
        ("The same row", heat_picture(view, level, target), None, None, True),
        ("The same dot products", heat_picture(view, scores, target), None, None, True),
    ]
    style = {
        "font.family": "DejaVu Sans",
        "font.size": 7.5,
        "mathtext.fontset": "dejavusans",
        "axes.linewidth": 0.4,
    }
    with rc_context(style):
        figure = Figure(figsize=(width, height), facecolor="white")
        dot = (72 * side * max(1.0, min(source.shape[:2]) / 150) * 2 / source.shape[1]) ** 2  # points^2
        for number, (text, picture, positions, fill, marked) in enumerate(panels):
            column, row = number % 5, number // 5
            left, bottom = margin + column * (side + gap), legend + (1 - row) * (tall + title)
            axes = figure.add_axes((left / width, bottom / height, side / width, tall / height))
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(f"$\\bf{{{'abcdefghij'[number]}}}$  {text}", loc="left", pad=3, fontsize=7.5)
            axes.set_axis_off()
            if positions is not None:
                y, x = pixel_centres(positions[::-1], view.grid, view.image_shape).T
                axes.scatter(x, y, dot, color=_unit(fill), edgecolors="#141414", linewidths=0.3)
            if marked:
                _mark_query(axes, view, rank, dot)
            if view.window and column == 3:
                _enlarge_window(axes, view, rank)
            axes.set_xlim(-0.5, picture.shape[1] - 0.5)
            axes.set_ylim(picture.shape[0] - 0.5, -0.5)
        _legend(figure, view, (margin + side + gap, side), (margin + 3 * (side + gap), 2 * side + gap))
        name = {
            "global": "global",
            "local": f"local {view.window}×{view.window}",
            "local_global": "local, then global",
        }[view.mode]
        figure.text(
            margin / width,
            0.3 / height,
            f"Layer {view.layer}, {view.grid[0]}×{view.grid[1]}",
            va="center",
            weight="bold",
        )
        figure.text(margin / width, 0.14 / height, f"{name} attention", va="center")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=240)


def _unit(rgb: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(value / 255 for value in rgb)


def _mark_query(axes, view: QueryView, rank: int, dot: float) -> None:
    """A ring around the query, and the outline of its window where it has one."""
    from matplotlib.patches import Rectangle

    (y, x) = pixel_centres(view.indices[rank : rank + 1], view.grid, view.image_shape)[0]
    for edge, thickness in (("#141414", 1.9), (_unit(CURRENT), 1.0)):
        axes.scatter([x], [y], 3.5 * dot, facecolors="none", edgecolors=[edge], linewidths=thickness)
        if view.window:
            stride = max(1, round(view.image_shape[1] / view.grid[1]))
            reach = view.window * stride / 2
            axes.add_patch(
                Rectangle((x - reach, y - reach), 2 * reach, 2 * reach, fill=False, ec=edge, lw=thickness)
            )


def _enlarge_window(axes, view: QueryView, rank: int) -> None:
    """The weights of the query's window, padded keys too, enlarged in the corner away from the query."""
    (y, x) = pixel_centres(view.indices[rank : rank + 1], view.grid, view.image_shape)[0]
    left = 0.03 if x > view.image_shape[1] / 2 else 0.59
    bottom = 0.03 if y < view.image_shape[0] / 2 else 0.59
    inset = axes.inset_axes((left, bottom, 0.38, 0.38))
    weights = view.attention[rank].reshape(view.window, view.window)
    inset.imshow(colour(attention_level(weights), "attention").astype(np.uint8))
    inset.set_xticks([])
    inset.set_yticks([])
    for spine in inset.spines.values():
        spine.set(edgecolor=_unit(CURRENT), linewidth=0.8)


def _legend(figure, view: QueryView, entropy: tuple[float, float], attention: tuple[float, float]) -> None:
    """Colour bars under the panels: (left, width) in inches of that of log H and that of attention."""
    width, height = figure.get_size_inches()
    low, high = entropy_range(view.log_entropy)
    ramp = np.linspace(0, 1, 256)[None]
    bars = (
        (entropy, colour(1 - ramp, "entropy"), (low, high), r"$\log H$ (chosen: the least)"),
        (
            attention,
            colour(ramp, "attention"),
            (np.log10(FLOOR), 0),
            "attention weight; for dot products, from the row's least to its greatest",
        ),
    )
    for (left, length), pixels, span, label in bars:
        axes = figure.add_axes((left / width, 0.4 / height, length / width, 0.09 / height))
        axes.imshow(pixels.astype(np.uint8), aspect="auto", extent=(*span, 0, 1))
        axes.set_yticks([])
        axes.tick_params(length=2, width=0.4, pad=1.5, labelsize=6.5)
        axes.set_xlabel(label, labelpad=1.5, fontsize=6.5)
        if span[1] == 0 and span[0] == np.log10(FLOOR):
            ticks = range(round(span[0]), 1)
            axes.set_xticks(ticks, ["1" if tick == 0 else f"$10^{{{tick}}}$" for tick in ticks])
        else:
            axes.locator_params(nbins=4)
