"""A query view as a figure for a paper, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scripts.queries.pictures import (
    CHOSEN,
    CURRENT,
    FLOOR,
    RANDOM,
    attention_level,
    colour,
    entropy_picture,
    entropy_range,
    faded,
    heat_picture,
    score_level,
)
from scripts.queries.view import QueryView

STYLE = {"font.family": "DejaVu Sans", "font.size": 7.5, "mathtext.fontset": "dejavusans"}
MARGIN, GAP, TITLE, LEGEND = 0.12, 0.1, 0.24, 0.62  # inches
EDGE = "#141414"


def draw_figure(
    view: QueryView,
    source: np.ndarray,
    target: np.ndarray,
    path: str | Path,
    rank: int = 0,
    width: float = 9.6,
) -> None:
    """Write a view as a figure; the file's ending chooses the format: .png, or .pdf and .svg for vectors.

    The upper row shows the source: itself, log H, the chosen queries, and of one query the attention row and
    the dot products that it comes from. The lower row: the translation, the source with CUT's random
    positions, and the same queries, row and dot products over the translation.

    Args:
        source, target: the photograph and its translation, (H, W, 3) uint8 each.
        rank: of the query whose row is shown, from 0.
        width: of the figure in inches.
    """
    side = (width - 2 * MARGIN - 4 * GAP) / 5
    tall = side * source.shape[0] / source.shape[1]
    height = 2 * (tall + TITLE) + LEGEND
    attention = attention_level(view.row_map(rank))
    scores = score_level(view.scores[rank]).reshape(view.grid)
    count, positions = len(view.indices), view.log_entropy.size
    panels = [  # title, picture, positions, their colour, whether the current query is marked
        ("Source $x$", source, None, None, False),
        (r"Entropy of each row, $\log H_i$", entropy_picture(view, source), None, None, False),
        (f"{count} of {positions} positions chosen", faded(source), view.indices, CHOSEN, True),
        (f"Attention row of query {rank}", heat_picture(view, attention, source), None, None, True),
        (f"Dot products of query {rank}", heat_picture(view, scores, source), None, None, True),
        ("Translation $G(x)$", target, None, None, False),
        (f"{len(view.random)} random positions (CUT)", faded(source), view.random, RANDOM, False),
        ("The same queries", faded(target), view.indices, CHOSEN, True),
        ("The same row", heat_picture(view, attention, target), None, None, True),
        ("The same dot products", heat_picture(view, scores, target), None, None, True),
    ]
    with rc_context({**STYLE, "axes.linewidth": 0.4}):
        figure = Figure(figsize=(width, height), facecolor="white")
        dot = (72 * side * max(1.0, min(source.shape[:2]) / 150) * 2 / source.shape[1]) ** 2  # points^2
        for number, (text, picture, indices, fill, marked) in enumerate(panels):
            row, column = divmod(number, 5)
            left, bottom = MARGIN + column * (side + GAP), LEGEND + (1 - row) * (tall + TITLE)
            axes = figure.add_axes((left / width, bottom / height, side / width, tall / height))
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(f"$\\bf{{{'abcdefghij'[number]}}}$  {text}", loc="left", pad=3, fontsize=7.5)
            axes.set_axis_off()
            if indices is not None:
                y, x = view.pixels(indices[::-1]).T
                axes.scatter(x, y, dot, color=_unit(fill), edgecolors=EDGE, linewidths=0.3)
            if marked:
                _mark_query(axes, view, rank, dot)
            if view.window and column == 3:
                _enlarge_window(axes, view, rank)
            axes.set_xlim(-0.5, picture.shape[1] - 0.5)
            axes.set_ylim(picture.shape[0] - 0.5, -0.5)
        _legend(figure, view, (MARGIN + side + GAP, side), (MARGIN + 3 * (side + GAP), 2 * side + GAP))
        layer = f"Layer {view.layer}, {view.grid[0]}×{view.grid[1]}"
        mode = view.mode + (f", windows of {view.window}×{view.window}" if view.window else "")
        figure.text(MARGIN / width, 0.3 / height, layer, va="center", weight="bold")
        figure.text(MARGIN / width, 0.14 / height, mode, va="center")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=240)


def _unit(rgb: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(value / 255 for value in rgb)


def _mark_query(axes: Axes, view: QueryView, rank: int, dot: float) -> None:
    """A ring around the query, and the outline of its window if it has one."""
    y, x = view.pixels(view.indices[rank : rank + 1])[0]
    for edge, thickness in ((EDGE, 1.9), (_unit(CURRENT), 1.0)):
        axes.scatter([x], [y], 3.5 * dot, facecolors="none", edgecolors=[edge], linewidths=thickness)
        if view.window:
            side = view.window * max(1, round(view.image_shape[1] / view.grid[1]))
            corner = (x - side / 2, y - side / 2)
            axes.add_patch(Rectangle(corner, side, side, fill=False, ec=edge, lw=thickness))


def _enlarge_window(axes: Axes, view: QueryView, rank: int) -> None:
    """The weights of the query's window, padded keys too, enlarged in the corner away from the query."""
    y, x = view.pixels(view.indices[rank : rank + 1])[0]
    left = 0.03 if x > view.image_shape[1] / 2 else 0.59
    bottom = 0.03 if y < view.image_shape[0] / 2 else 0.59
    inset = axes.inset_axes((left, bottom, 0.38, 0.38))
    weights = view.attention[rank].reshape(view.window, view.window)
    inset.imshow(colour(attention_level(weights), "attention").astype(np.uint8))
    inset.set_xticks([])
    inset.set_yticks([])
    for spine in inset.spines.values():
        spine.set(edgecolor=_unit(CURRENT), linewidth=0.8)


def _legend(
    figure: Figure, view: QueryView, entropy: tuple[float, float], attention: tuple[float, float]
) -> None:
    """Colour bars under the panels; (left, width) in inches of the bar of log H and of that of attention."""

    def bar(place: tuple[float, float], levels: np.ndarray, ramp: str, ends: tuple, label: str) -> Axes:
        width, height = figure.get_size_inches()
        axes = figure.add_axes((place[0] / width, 0.4 / height, place[1] / width, 0.09 / height))
        axes.imshow(colour(levels, ramp).astype(np.uint8), aspect="auto", extent=(*ends, 0, 1))
        axes.set_yticks([])
        axes.tick_params(length=2, width=0.4, pad=1.5, labelsize=6.5)
        axes.set_xlabel(label, labelpad=1.5, fontsize=6.5)
        return axes

    levels, floor = np.linspace(0, 1, 256)[None], round(np.log10(FLOOR))
    ends = entropy_range(view.log_entropy)
    bar(entropy, 1 - levels, "entropy", ends, r"$\log H$ (chosen: the least)").locator_params(nbins=4)
    label = "attention weight; for dot products, from the row's least to its greatest"
    axes = bar(attention, levels, "attention", (floor, 0), label)
    axes.set_xticks(range(floor, 1), [f"$10^{{{tick}}}$" for tick in range(floor, 0)] + ["1"])
