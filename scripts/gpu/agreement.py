"""The section of `scripts/gpu/check.py` that holds losses of training steps against the textbook step's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from models.speed.step_graph import Snapshot
from models.textbook import textbook_step
from scripts.gpu.bench import Bench, Report, freed

LOSSES = ("G", "D_real", "D_fake")


def agreement(bench: Bench, report: Report) -> None:
    """Losses of 200 steps against the textbook step: each from the same weights, and running free."""
    steps = 3 if bench.cpu else 200
    batches = bench.batches(min(steps, 50))
    variants = {
        "float32": "",
        "float32, channels last, graph": "--channels_last --cuda_graph",
        "fast": "--fast",
    }
    if bench.cpu:
        variants = {"float32": "", "fast": "--fast"}
    marks = sorted({min(n, steps) for n in (1, 3, 10, 50, 200)})

    rows = []
    for name, words in variants.items():
        off = _off_from_the_same_weights(bench, words, batches, steps)
        report.data.setdefault("from the same weights", {})[name] = off.tolist()
        rows.append([name, f"{off.median():.1e}", *(f"{off[:n].max():.1e}" for n in marks)])
    report.say(
        "Relative difference of G, D_real and D_fake from the textbook step, each step from the same weights:"
    )
    report.table(["run", "median", *(f"most in {n}" for n in marks)], rows)

    # each weight nudged for itself: norms undo a common factor
    free = {"textbook": ("", 0.0), "textbook, weights of G off by 1e-7": ("", 1e-7)}
    free |= {name: (words, 0.0) for name, words in variants.items() if "graph" not in words}
    steps = min(steps, 50)
    marks = [n for n in marks if n <= steps]
    curves = {}
    for name, (words, nudge) in free.items():
        with freed():
            model = bench.model(words)
            runner = textbook_step(model) if name.startswith("textbook") else model
            with torch.no_grad():
                for weight in model.netG.parameters() if nudge else ():
                    weight.mul_(1 + nudge * torch.randn_like(weight))

            def step(runner=runner) -> dict[str, Tensor]:
                runner.optimize_parameters()
                return runner.losses

            curves[name] = torch.stack(list(_losses(model, step, batches, steps))).cpu()
            model = runner = step = None
        report.data.setdefault("free", {})[name] = curves[name].tolist()
        report.save()
    rows = []
    for name, curve in curves.items():
        off = _relative(curve, curves["textbook"])
        rows.append([name, *(f"{off[n - 1]:.1e}" for n in marks), f"{curve[-50:, 0].mean():.4f}"])
    report.say("The same after so many steps of a run of its own:")
    report.table(["run", *marks, "mean G, last 50"], rows)


def _losses(model, step: Callable[[], dict], batches: list[dict], steps: int) -> Iterator[Tensor]:
    """The losses of each step of a run, on the device; `step` returns them by name."""
    model.accelerator.set_rounding()
    torch.manual_seed(1)
    for number in range(steps):
        model.set_input(batches[number % len(batches)])
        losses = step()
        yield torch.stack([losses[name].detach().float() for name in LOSSES])


def _relative(losses: Tensor, base: Tensor) -> Tensor:
    """The largest difference in each step (steps,), relative to the loss."""
    return ((losses - base).abs() / base.abs().clamp_min(1e-3)).amax(1)


def _off_from_the_same_weights(bench: Bench, words: str, batches: list[dict], steps: int) -> Tensor:
    """How far the losses of each step of a run are off what the textbook step makes of the weights before it: (steps,)."""
    with freed():
        model = bench.model(words)
        plain = textbook_step(model)  # on the same parameters, with optimisers of its own

        expected = []

        def both() -> dict[str, Tensor]:
            """The textbook step, undone, and then the run's own."""
            before = Snapshot(model)
            plain.optimize_parameters()
            expected.append(torch.stack([plain.losses[name].detach() for name in LOSSES]))
            before.restore()
            model.optimize_parameters()
            return model.losses

        found = torch.stack(list(_losses(model, both, batches, steps)))
        off = _relative(found, torch.stack(expected)).cpu()
        model = plain = None
    return off
