"""A sweep over the checkpoints of a run: its last and its best number of each metric, and their course as a picture.

The best checkpoint is chosen by the test images, so its number flatters; the last is what training led to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.metrics.evaluation import higher_is_better

Row = dict[str, Any]  # {"epoch": "100", "numbers": {"FID": 45.5, ...}, ...}


def last_and_best(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Of rows in order of training: {"last": {"epoch", metric: number}, "best": {metric: {"epoch", "number"}}}."""
    best = {}
    for name in rows[-1]["numbers"]:
        choose = max if higher_is_better(name) else min
        row = choose(rows, key=lambda row, name=name: row["numbers"][name])
        best[name] = {"epoch": row["epoch"], "number": row["numbers"][name]}
    return {"last": {"epoch": rows[-1]["epoch"], **rows[-1]["numbers"]}, "best": best}


def draw_sweep(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with a panel for each metric: its course over the checkpoints, the last and the best marked."""
    from matplotlib.figure import Figure

    best = last_and_best(rows)["best"]
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(4.6 * len(best), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(best), squeeze=False)[0], best, strict=True):
        numbers = [row["numbers"][name] for row in rows]
        place = epochs.index(best[name]["epoch"])
        axes.plot(numbers, color="#33658a", marker="o", markersize=3)
        last = len(numbers) - 1
        axes.plot(last, numbers[last], "s", color="#33658a", label=f"last: {numbers[last]:.4g}")
        axes.plot(place, numbers[place], "*", color="#d1495b", ms=12, label=f"best: {numbers[place]:.4g}")
        step = max(1, len(epochs) // 8)
        axes.set_xticks(range(0, len(epochs), step), epochs[::step])
        axes.set_xlabel("checkpoint")
        axes.set_title(f"{name} ({'higher' if higher_is_better(name) else 'lower'} is better)", fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
