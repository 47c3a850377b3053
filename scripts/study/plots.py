"""The drawings of a study's page: every seed's numbers, and the loss curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from scripts.plots import COLOURS, GREY, panels
from util.metrics.evaluation import higher_is_better
from util.watch.loss_log import read_loss_records
from util.watch.loss_plot import smooth


def arrow(metric: str) -> str:
    """Which way a metric improves."""
    return "↑" if higher_is_better(metric) else "↓"


def plot_seeds(
    runs: Sequence[Mapping[str, Any]], metrics: Sequence[str], reference: Mapping[str, float]
) -> Figure:
    """A panel for each metric: a dot per seed, a bar at their mean, a dotted line for the source images."""
    labels = list(dict.fromkeys(run["label"] for run in runs))
    figure, axes = panels([f"{metric} {arrow(metric)}" for metric in metrics])
    for panel, metric in zip(axes, metrics, strict=True):
        for place, label in enumerate(labels):
            values = [run["numbers"].get(metric) for run in runs if run["label"] == label and run["numbers"]]
            values = [value for value in values if value is not None]
            colour = COLOURS[place % len(COLOURS)]
            if values:
                panel.plot([place - 0.28, place + 0.28], [np.mean(values)] * 2, color=colour, lw=3, alpha=0.5)
            panel.plot([place] * len(values), values, "o", color=colour, markersize=5)
        if reference.get(metric) is not None:
            panel.axhline(reference[metric], color=GREY, linestyle=":", linewidth=1)
        rotation = 20 if len(labels) <= 6 else 60
        panel.set_xticks(range(len(labels)), labels, rotation=rotation, ha="right")
        panel.set_xlim(-0.6, len(labels) - 0.4)
    return figure


def plot_losses(out: Path, runs: Sequence[Mapping[str, Any]]) -> Figure | None:
    """A panel for each loss, a colour for each configuration; None if nothing was logged."""
    labels = list(dict.fromkeys(run["label"] for run in runs))
    # loss -> label -> (images, values) of each seed
    curves: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]] = {}
    for run in runs:
        points: dict[str, list[tuple[float, float]]] = {}
        for record in read_loss_records(out / "runs" / run["name"]):
            for loss, value in record["losses"].items():
                if value is not None:
                    points.setdefault(loss, []).append((record["images"], value))
        for loss, pairs in points.items():
            images, values = np.array(pairs, float).T
            curves.setdefault(loss, {}).setdefault(run["label"], []).append((images, smooth(values)))
    if not curves:
        return None
    figure, axes = panels(list(curves), height=2.6)
    for panel, by_label in zip(axes, curves.values(), strict=True):
        levels = []
        for label, seeds in by_label.items():
            colour = COLOURS[labels.index(label) % len(COLOURS)]
            for images, values in seeds:
                _plot_curve(panel, images, values, color=colour, linewidth=0.7, alpha=0.35)
            end = min(images[-1] for images, _ in seeds)
            at = np.unique(np.concatenate([images[images <= end] for images, _ in seeds]))
            mean = np.mean([np.interp(at, images, values) for images, values in seeds], axis=0)
            _plot_curve(panel, at, mean, color=colour, linewidth=1.8, label=label)
            levels.append(mean[-1])
        if min(levels) > 0 and max(levels) > 4 * min(levels):
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter(LogFormatter())
            panel.yaxis.set_minor_formatter(LogFormatter())
        panel.set_xlabel("images")
    handles = {line.get_label(): line for panel in axes for line in panel.get_legend_handles_labels()[0]}
    style = {
        "frameon": False,
        "labelcolor": GREY,
        "ncols": min(6, len(handles)),
        "loc": "outside upper center",
    }
    figure.legend(handles.values(), handles.keys(), **style)
    return figure


def _plot_curve(panel: Axes, x: np.ndarray, y: np.ndarray, **style: object) -> None:
    """A line; of a single point, a dot."""
    panel.plot(x, y, marker="o" if len(x) == 1 else None, markersize=4, **style)
