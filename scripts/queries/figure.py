"""A query view as a figure for a paper, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scripts.queries import pictures
from scripts.queries.view import QueryView

EDGE = "#141414"


def draw_figure(
    view: QueryView, source: np.ndarray, target: np.ndarray, path: str | Path, rank: int = 0
) -> None:
    """Write a view as a figure; the file's ending chooses the format: .png, or .pdf and .svg for vectors.

    The upper row shows the source: itself, log H, the chosen queries, and of one query the attention row and
    the dot products that it comes from. The lower row: the translation, the source with CUT's random
    positions, and the same queries, row and dot products over the translation.

    Args:
        source, target: the photograph and its translation, (H, W, 3) uint8 each.
        rank: of the query whose row is shown, from 0.
    """
    attention = pictures.attention_level(view.row_map(rank))
    scores = pictures.score_level(view.scores[rank]).reshape(view.grid)
    chosen = f"{len(view.indices)} of {view.log_entropy.size} positions chosen"
    panels = [  # title, picture, positions, their colour
        ("source", source, None, None),
        ("log H of each row", pictures.entropy_picture(view, source), None, None),
        (chosen, pictures.faded(source), view.indices, pictures.CHOSEN),
        (f"attention row of query {rank}", pictures.heat_picture(view, attention, source), None, None),
        (f"dot products of query {rank}", pictures.heat_picture(view, scores, source), None, None),
        ("translation", target, None, None),
        (f"{len(view.random)} random positions (CUT)", pictures.faded(source), view.random, pictures.RANDOM),
        ("the same queries", pictures.faded(target), view.indices, pictures.CHOSEN),
        ("the same row", pictures.heat_picture(view, attention, target), None, None),
        ("the same dot products", pictures.heat_picture(view, scores, target), None, None),
    ]
    with rc_context({"font.size": 7, "axes.linewidth": 0.4}):
        height = 0.9 + 4 * source.shape[0] / source.shape[1]
        figure = Figure(figsize=(10, height), facecolor="white", layout="constrained")
        axes = figure.subplots(3, 5, height_ratios=(25, 25, 1))  # below them the scales
        for place, (title, picture, indices, colour) in zip(axes[:2].flat, panels, strict=True):
            place.imshow(picture, interpolation="nearest")
            place.set_title(title, loc="left", pad=3, fontsize=7.5)
            place.set_axis_off()
            if indices is not None:
                y, x = view.pixels(indices[::-1]).T
                colour = np.array(colour) / 255
                place.scatter(x, y, 5, color=colour, edgecolors=EDGE, linewidths=0.3)
        for place in axes[:2, 2:].flat:
            _mark_query(place, view, rank)
        scales = {
            1: (Normalize(*pictures.entropy_range(view.log_entropy)), "viridis_r", "log H"),
            3: (LogNorm(pictures.FLOOR, 1), "magma", "attention weight"),
            4: (Normalize(0, 1), "magma", "dot product, least to greatest"),
        }
        for column, place in enumerate(axes[2]):
            place.set_axis_off()
            if column in scales:
                norm, colours, label = scales[column]
                scale = ScalarMappable(norm, colours)
                figure.colorbar(scale, cax=place, orientation="horizontal", label=label)
                place.set_axis_on()
        window = f", windows of {view.window}×{view.window}" if view.window else ""
        figure.suptitle(f"Layer {view.layer}, {view.grid[0]}×{view.grid[1]}, {view.mode}{window}", fontsize=8)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=240)


def _mark_query(axes: Axes, view: QueryView, rank: int) -> None:
    """A ring around the query, and the outline of its window if it has one."""
    limits = axes.get_xlim(), axes.get_ylim()
    ((y, x),) = view.pixels(view.indices[rank : rank + 1])
    for edge, thickness in ((EDGE, 1.9), ("white", 1.0)):
        axes.scatter([x], [y], 18, facecolors="none", edgecolors=edge, linewidths=thickness)
        if view.window:
            high, wide = (view.window * stride for stride, _ in view.geometry)
            corner = (x - wide / 2, y - high / 2)
            axes.add_patch(Rectangle(corner, wide, high, fill=False, ec=edge, lw=thickness))
    axes.set(xlim=limits[0], ylim=limits[1])  # a window can reach beyond the image
