"""The section of `scripts/gpu/check.py` that compares losses with those of the textbook step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from models.speed.step_graph import Snapshot
from models.textbook import TextbookStep
from scripts.gpu.bench import Bench, Report
from scripts.measuring import release_memory

LOSSES = ("G", "D_real", "D_fake")
VARIANTS = {
    "float32": "",
    "float32, channels last, graph": "--channels_last --cuda_graph",
    "fast": "--fast",
}
STEPS, SEPARATE_STEPS = 200, 50


def agreement(bench: Bench, report: Report) -> None:
    """Losses of 200 steps against the textbook step: from the same weights, and as separate runs."""
    steps = 3 if bench.cpu else STEPS
    batches = bench.batches(min(steps, 50))
    variants = {name: words for name, words in VARIANTS.items() if not (bench.cpu and "graph" in words)}
    marks = sorted({min(n, steps) for n in (1, 3, 10, 50, 200)})

    rows = []
    for name, words in variants.items():
        off = _differences_from_the_same_weights(bench, words, batches, steps)
        release_memory()
        report.data.setdefault("from the same weights", {})[name] = off.tolist()
        rows.append([name, f"{off.median():.1e}", *(f"{off[:n].max():.1e}" for n in marks)])
    report.say("Relative difference of G, D_real and D_fake from the textbook step, from the same weights:")
    report.table(["run", "median", *(f"largest of {n}" for n in marks)], rows)

    runs = {"textbook": ("", 0.0), "textbook, weights of G off by 1e-7": ("", 1e-7)}
    runs |= {name: (words, 0.0) for name, words in variants.items() if "graph" not in words}
    steps = min(steps, SEPARATE_STEPS)
    marks = [n for n in marks if n <= steps]
    curves = {}
    for name, (words, nudge) in runs.items():
        curves[name] = _curve(bench, words, name.startswith("textbook"), nudge, batches, steps)
        release_memory()
        report.data.setdefault("separate runs", {})[name] = curves[name].tolist()
        report.save()
    rows = []
    for name, curve in curves.items():
        off = _relative(curve, curves["textbook"])
        rows.append([name, *(f"{off[n - 1]:.1e}" for n in marks), f"{curve[-50:, 0].mean():.4f}"])
    report.say("The same after this many steps of a separate run:")
    report.table(["run", *marks, "mean G, last 50"], rows)


def _curve(bench: Bench, words: str, plain: bool, nudge: float, batches: list[dict], steps: int) -> Tensor:
    """The losses of a run (steps, 3), each weight of G changed by `nudge` at the start, relative."""
    model = bench.side(words).model
    runner = TextbookStep(model) if plain else model
    with torch.no_grad():
        # Independent changes: a norm would cancel a common factor.
        for weight in model.netG.parameters() if nudge else ():
            weight.mul_(1 + nudge * torch.randn_like(weight))

    def step() -> dict[str, Tensor]:
        runner.optimize_parameters()
        return runner.losses

    return torch.stack(list(_losses(model, step, batches, steps))).cpu()


def _differences_from_the_same_weights(bench: Bench, words: str, batches: list[dict], steps: int) -> Tensor:
    """Relative differences (steps,) from the textbook step, each step from the same weights."""
    model = bench.side(words).model
    plain = TextbookStep(model)  # on the same parameters, with its own optimisers
    expected = []

    def both() -> dict[str, Tensor]:
        """The textbook step, undone, and then the run's own."""
        before = Snapshot(model)
        plain.optimize_parameters()
        expected.append(torch.stack([plain.losses[name].detach() for name in LOSSES]))
        plain.losses = {}  # their history ties the weights' gradients to this stream: no capture would work
        before.restore()
        model.optimize_parameters()
        return model.losses

    found = torch.stack(list(_losses(model, both, batches, steps)))
    return _relative(found, torch.stack(expected)).cpu()


def _losses(model, step: Callable[[], dict], batches: list[dict], steps: int) -> Iterator[Tensor]:
    """The losses (3,) of each step, on the device; `step` returns them by name."""
    model.accelerator.set_switches()
    torch.manual_seed(1)
    for number in range(steps):
        model.set_input(batches[number % len(batches)])
        losses = step()
        yield torch.stack([losses[name].detach().float() for name in LOSSES])
    if model.opt.cuda_graph and not model.accelerator.recordings:
        raise SystemExit("the step was not captured: see log.txt")


def _relative(losses: Tensor, base: Tensor) -> Tensor:
    """The largest difference in each step (steps,), relative to the loss."""
    return ((losses - base).abs() / base.abs().clamp_min(1e-3)).amax(1)
