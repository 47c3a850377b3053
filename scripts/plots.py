"""Figures of several panels, in colours for light and dark pages."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#6f5bb5", "#56b4e9", "#8c564b")
GREY = "#808893"  # readable on a light page and on a dark one
COLUMNS = 3  # panels side by side


def panels(titles: list[str], height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title; `height` of a panel in inches."""
    columns = min(COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(4.2 * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[len(titles) :]:
        unused.remove()
    for panel, title in zip(axes, titles, strict=False):
        panel.set_facecolor("none")
        panel.set_title(title, color=GREY, fontsize=9.5)
        panel.tick_params(which="both", colors=GREY, labelsize=8)
        panel.xaxis.label.set(color=GREY, fontsize=8.5)
        panel.grid(color=GREY, alpha=0.2)
        for side, spine in panel.spines.items():
            spine.set(color=GREY, visible=side in ("left", "bottom"))
    return figure, axes[: len(titles)]


def save(figure: Figure, path: Path, **options: object) -> None:
    """Write the figure; the ending chooses the format. The same drawing gives the same SVG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "plots"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, **options)
