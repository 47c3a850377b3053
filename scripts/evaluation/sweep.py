"""A sweep over the checkpoints of a run: which they are, the last and the best of each metric, and a plot.

The best checkpoint is chosen by the test images, so its number is optimistic; the last is not chosen.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import MODELS
from models.weights import weights_file
from options.saved import run_folder
from util.errors import UserError
from util.metrics.evaluation import higher_is_better
from util.metrics.features import sha256

Row = dict[str, Any]  # {"epoch": "100", "numbers": {"FID": 45.5, ...}, ...}


def checkpoints(opt: Namespace) -> dict[str, Path]:
    """The generators that --epochs names, oldest first.

    `all` includes latest only if it differs from the last numbered one.
    """
    if opt.epochs != "all":
        names = [name.strip() for name in opt.epochs.split(",")]
    else:
        pattern = weights_of(opt, "*")
        end = pattern.name.removeprefix("*")
        names = [path.name.removesuffix(end) for path in pattern.parent.glob(pattern.name)]
        names = sorted((name for name in names if name.isdigit()), key=int)
        last, latest = (weights_of(opt, name) for name in (names[-1] if names else "", "latest"))
        if latest.is_file() and not (last.is_file() and sha256(last) == sha256(latest)):
            names.append("latest")
    found = {name: weights_of(opt, name) for name in names}
    missing = [path for path in found.values() if not path.is_file()]
    if missing or not found:
        raise UserError(f"--epochs {opt.epochs}: there is no {(missing or [weights_of(opt, '*')])[0]}")
    return found


def weights_of(opt: Namespace, epoch: str) -> Path:
    """The file of the network that translates, at an epoch of the run."""
    return weights_file(run_folder(vars(opt)), epoch, MODELS[opt.model].translating(opt)[0])


def last_and_best(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The last and the best number of each metric, of rows in order of training.

    Returns:
        {"last": {"epoch", metric: number}, "best": {metric: {"epoch", "number"}}}.
    """
    best = {}
    for name in rows[-1]["numbers"]:
        choose = max if higher_is_better(name) else min
        row = choose(rows, key=lambda row, name=name: row["numbers"][name])
        best[name] = {"epoch": row["epoch"], "number": row["numbers"][name]}
    return {"last": {"epoch": rows[-1]["epoch"], **rows[-1]["numbers"]}, "best": best}


def draw_sweep(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with a panel for each metric: its course, with the last and the best marked."""
    from scripts.plots import COLOURS, panels, save

    best = last_and_best(rows)["best"]
    epochs = [row["epoch"] for row in rows]
    last, step = len(rows) - 1, max(1, len(rows) // 8)
    titles = [f"{name} ({'higher' if higher_is_better(name) else 'lower'} is better)" for name in best]
    figure, axes = panels(titles)
    for panel, (name, found) in zip(axes, best.items(), strict=True):
        numbers = [row["numbers"][name] for row in rows]
        panel.plot(numbers, color=COLOURS[0], marker="o", markersize=3)
        panel.plot(last, numbers[last], "s", color=COLOURS[0], label=f"last: {numbers[last]:.4g}")
        place = epochs.index(found["epoch"])
        panel.plot(place, found["number"], "*", color=COLOURS[1], ms=12, label=f"best: {found['number']:.4g}")
        panel.set_xticks(range(0, len(epochs), step), epochs[::step])
        panel.set_xlabel("checkpoint")
        panel.legend(frameon=False)
    save(figure, path, dpi=150)
