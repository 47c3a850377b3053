"""A query view as a figure for a paper, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from scripts.queries.page import attention_level, score_level
from scripts.queries.view import QueryView


def draw_figure(view: QueryView, source: np.ndarray, target: np.ndarray, path: Path, rank: int = 0) -> None:
    """Write a view as a figure; the file's ending chooses the format: .png, or .pdf and .svg for vectors.

    The upper row shows over the source, the lower one over the translation: the chosen queries, log H, and of
    one query the attention row and the dot products that it comes from.

    Args:
        source, target: (H, W, 3) uint8 each.
        rank: of the query whose row is shown, from 0.
    """
    panels = {  # title: map (h, w), its colours
        f"{len(view.indices)} of {view.log_entropy.size} positions": (None, None),
        "log H of each row": (view.log_entropy, "viridis_r"),
        f"attention row of query {rank}": (attention_level(view.row_map(rank)), "magma"),
        f"dot products of query {rank}": (score_level(view.scores[rank]).reshape(view.grid), "magma"),
    }
    (y_stride, y_border), (x_stride, x_border) = view.geometry
    top, left = -y_border - y_stride / 2, -x_border - x_stride / 2
    extent = (left, left + view.grid[1] * x_stride, top + view.grid[0] * y_stride, top)
    figure = Figure(figsize=(10, 0.6 + 5 * source.shape[0] / source.shape[1]), layout="constrained")
    for image, row in zip((source, target), figure.subplots(2, 4), strict=True):
        for place, (title, (levels, colours)) in zip(row, panels.items(), strict=True):
            place.imshow(image)
            y, x = view.pixels(view.indices if levels is None else view.indices[rank : rank + 1]).T
            if levels is None:
                place.scatter(x, y, 5, color="#ffd140", edgecolors="#141414", linewidths=0.3)
            else:
                place.imshow(levels, colours, alpha=0.85, extent=extent)
                place.scatter(x, y, 18, facecolors="none", edgecolors="white")
            place.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
            place.set_axis_off()
            if image is source:
                place.set_title(title, fontsize=7.5)
    figure.suptitle(f"Layer {view.layer}, {view.grid[0]}×{view.grid[1]}, {view.mode}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=240)
