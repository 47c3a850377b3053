"""Time the training step against the textbook one: python scripts/benchmark.py [--modes global,local] [--size 256] [options of train.py]

Two sides, each with its own networks of the same weights: the plain step (`models/textbook`: released order, full attention
matrices, float32, eager, NCHW; on CUDA with TF32 convolutions and cuDNN's search, as PyTorch ships and the released code sets
them) and the step that trains, under the speed options given (--precision, --channels_last, --compile, --cuda_graph, --fast).
Steps of the two alternate, so that whatever else a machine does meets both; each is timed between synchronisations, and
medians with quartiles are given. A first untimed step compiles and captures. Peak memory is taken in a process for each side.

Images are synthetic unless --dataroot names a data set. Needs PyTorch alone, no visdom, no dominate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from models import create_model
from models.patch_sampler import PatchSelection
from models.qs_attn import QuerySelection
from models.textbook import cut as textbook_cut
from models.textbook import textbook_step
from options.train_options import TrainOptions
from scripts.measuring import StageClock, peak_memory, seconds, spread, versions_and_hardware
from util.errors import UserError, entry_point

MODES = {
    "global": ["--QS_mode", "global"],
    "local": ["--QS_mode", "local"],
    "local_global": ["--QS_mode", "local_global"],
    "cut": ["--model", "cut"],
}
UNHURRIED = {
    "precision": "fp32",
    "channels_last": False,
    "compile": False,
    "cuda_graph": False,
    "fast": False,
}
STAGES = ("data", "generate", "D", "encode", "select", "route", "NCE", "backward", "optimiser", "other")


class Side:
    """One way to run the step: `name` is "plain" or "fast", the options those of the fast side."""

    def __init__(self, name: str, opt: Namespace):
        self.name = name
        self.opt = opt if name == "fast" else Namespace(**{**vars(opt), **UNHURRIED})
        torch.manual_seed(opt.seed)
        self.model = create_model(self.opt)
        self.runner = self.model if name == "fast" else textbook_step(self.model)
        self.networks = self.runner.networks

    def step(self, batch: dict) -> None:
        self._set_switches()
        self.model.set_input(batch)
        self.runner.optimize_parameters()

    def translate(self, images: Tensor) -> None:
        """Translate images (B, C, H, W): one after the other on the plain side, at once on the fast one."""
        self._set_switches()
        self.runner.translate(images.to(self.model.device))

    def _set_switches(self) -> None:
        """cuDNN's switches are the process's; the fast side sets its own in each step."""
        if self.name == "plain":
            torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True


def batches_of(opt: Namespace, dataroot: str | None) -> Iterator[dict]:
    """Batches without end: of a data set, on the device, or a few synthetic ones in turn, in pinned memory on CUDA."""
    if dataroot:
        from data import create_loader
        from util.device import get_device

        loader = create_loader(opt, get_device(opt.gpu_ids))
        for epoch in range(1, sys.maxsize):
            yield from loader.epoch(epoch)
    generator = torch.Generator().manual_seed(opt.seed)
    size = (opt.batch_size, 3, opt.crop_size, opt.crop_size)
    batches = [{name: torch.rand(size, generator=generator) * 2 - 1 for name in "AB"} for _ in range(4)]
    if opt.gpu_ids and torch.cuda.is_available():
        batches = [{name: images.pin_memory() for name, images in batch.items()} for batch in batches]
    while True:
        yield from batches


def time_steps(sides: list[Side], batches: Iterator[dict], warmup: int, steps: int) -> dict[str, dict]:
    """Training steps of the sides in turn, on the same batches, and the wait for a batch."""
    device = sides[0].model.device
    first, times, waits = {}, defaultdict(list), []
    for number in range(1 + warmup + steps):
        start = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - start)
        for side in sides:
            took = seconds(lambda side=side, batch=batch: side.step(batch), device)
            if number == 0:
                first[side.name] = took
            elif number > warmup:
                times[side.name].append(took)
    timed = {
        name: {"step_ms": spread(of_side), "first_step_s": first[name]} for name, of_side in times.items()
    }
    return {**timed, "data_wait_ms": spread(waits[-steps:])}


def time_images(sides: list[Side], batch: int, rounds: int) -> dict[str, dict]:
    """Milliseconds an image of inference, of `batch` images at a time, the sides in turn."""
    size = sides[0].opt.crop_size
    images, times = torch.rand(batch, 3, size, size) * 2 - 1, defaultdict(list)
    for number in range(2 + rounds):
        for side in sides:
            took = seconds(lambda side=side: side.translate(images), side.model.device)
            if number >= 2:
                times[side.name].append(took / batch)
    return {name: spread(of_side) for name, of_side in times.items()}


def stages_of(side: Side, batches: Iterator[dict], steps: int) -> dict[str, float]:
    """Milliseconds a step spends in each of STAGES, with a synchronisation at each border; the plain side routes as it selects."""
    model, networks = side.model, side.networks
    places = [
        ("data", model, "set_input"),
        ("generate", networks["G"], "forward"),
        ("encode", networks["G"], "encode"),
        ("D", networks["D"], "forward"),
        ("select", model, "choose_patches"),
        ("select", textbook_cut, "plain_qs_attn"),
        ("route", QuerySelection, "route"),
        ("route", PatchSelection, "route"),
        ("NCE", networks["F"], "forward"),
        ("NCE", model.patchnce, "forward"),
        ("backward", Tensor, "backward"),
        ("optimiser", model.guard, "check"),
        *(("optimiser", optimizer, "step") for optimizer in side.runner.optimizers.values()),
    ]
    for _ in range(2):
        side.step(next(batches))
    with contextlib.ExitStack() as stack:
        clock = StageClock(model.device)
        for stage, owner, name in places:
            stack.enter_context(patch.object(owner, name, clock.timed(stage, getattr(owner, name))))
        fetch = clock.timed("data", lambda: next(batches))
        for _ in range(steps):
            side.step(fetch())
        clock.switch()
    return {stage: 1e3 * clock.totals[stage] / steps for stage in STAGES}


def memory_in_a_process(argv: list[str], mode: str, side: str) -> int | None:
    """Peak memory of two steps of a side by itself; None, with the reason on stderr, where it fails."""
    command = [sys.executable, __file__, *argv, "--modes", mode, "--memory_of", side]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        print(f"memory of {side}, {mode}: {run.stderr.strip()[-500:]}", file=sys.stderr)
        return None
    return int(run.stdout.split()[-1])


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def written(times: dict[str, float] | None) -> str:
    if times is None:
        return "-"
    return f"{times['median']:.4g} ({times['low']:.4g}-{times['high']:.4g})"


def report(results: list[dict]) -> str:
    """The Markdown tables of all modes."""
    head = "mode|plain, ms a step (quartiles)|fast|times|plain, ms an image|fast|times|plain, peak GB|fast|first fast step, s"
    rows = [head.split("|")]
    for result in results:
        row = [result["mode"]]
        for what in ("steps", "images"):
            sides = result.get(what, {})
            times = [
                sides[side].get("step_ms", sides[side]) if side in sides else None
                for side in ("plain", "fast")
            ]
            ratio = f"{times[0]['median'] / times[1]['median']:.2f}" if all(times) else "-"
            row += [*map(written, times), ratio]
        memory = [result.get("memory", {}).get(side) for side in ("plain", "fast")]
        row += [f"{peak / 1e9:.2f}" if peak else "-" for peak in memory]
        rows.append([*row, f"{result['steps']['fast']['first_step_s']:.1f}"])
    text = table(rows)
    for result in results:
        if "stages" in result:
            body = [
                [side, *(f"{ms[stage]:.4g}" for stage in STAGES)] for side, ms in result["stages"].items()
            ]
            title = f"\n\nStages of a step, {result['mode']}, ms (eager, not captured):\n\n"
            text += title + table([["side", *STAGES], *body])
    return text


def parse(argv: list[str]) -> tuple[Namespace, list[str]]:
    """The benchmark's own options, and the words that are train.py's."""
    parser = argparse.ArgumentParser(
        description="Time the training step against the textbook one.",
        epilog="All other options are those of train.py, such as --precision, --compile, --fast, --ngf, --batch_size.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--modes", default="global,local,local_global,cut", help="which of these (%(default)s)"
    )
    parser.add_argument("--size", type=int, default=256, help="side of the images, in pixels (%(default)s)")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), help="where (the first that is there)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each side (%(default)s)")
    parser.add_argument(
        "--warmup", type=int, default=3, help="untimed steps before them, and one more (%(default)s)"
    )
    parser.add_argument(
        "--images", type=int, default=10, help="timed batches of inference; 0: none (%(default)s)"
    )
    parser.add_argument("--inference_batch", type=int, default=8, help="images in each (%(default)s)")
    parser.add_argument("--stages", action="store_true", help="also where a step spends its time")
    parser.add_argument(
        "--no_plain", action="store_true", help="the fast side alone, where the plain one does not fit"
    )
    parser.add_argument("--no_memory", action="store_true", help="without the processes that measure memory")
    parser.add_argument("--dataroot", help="a data set to take the images from, instead of synthetic ones")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    parser.add_argument("--memory_of", choices=("plain", "fast"), help=argparse.SUPPRESS)
    own, rest = parser.parse_known_args(argv)
    for mode in own.modes.split(","):
        if mode not in MODES:
            raise UserError(f"--modes names {mode!r}, but there are {', '.join(MODES)}")
    for name, least in (("steps", 1), ("warmup", 0), ("images", 0), ("inference_batch", 1)):
        if getattr(own, name) < least:
            raise UserError(f"--{name} is {getattr(own, name)}, but must be at least {least}")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    own.device = own.device or next(name for name, found in there.items() if found)
    if not there[own.device]:
        raise UserError(
            f"--device {own.device} was not found; there are {', '.join(name for name in there if there[name])}"
        )
    return own, rest


def options_of(own: Namespace, rest: list[str], mode: str) -> Namespace:
    """The options of the fast side in a mode."""
    load = math.ceil(own.size * 286 / 256)
    words = [
        "--gpu_ids",
        "-1" if own.device == "cpu" else "0",
        "--crop_size",
        str(own.size),
        "--load_size",
        str(load),
    ]
    return TrainOptions().parse(
        [*words, *(["--dataroot", own.dataroot] if own.dataroot else []), *MODES[mode], *rest]
    )


def measure(own: Namespace, rest: list[str], argv: list[str], mode: str) -> dict:
    """All numbers of one mode."""
    opt = options_of(own, rest, mode)
    names = ["fast"] if own.no_plain else ["plain", "fast"]
    sides = [Side(name, opt) for name in names]
    batches = batches_of(opt, own.dataroot)
    speed = {name: getattr(opt, name) for name in UNHURRIED}
    result = {"mode": mode, "size": own.size, "batch_size": opt.batch_size, "speed": speed}
    result["steps"] = time_steps(sides, batches, own.warmup, own.steps)
    if own.images:
        result["images"] = time_images(sides, own.inference_batch, own.images)
    if own.stages:
        eager = Namespace(**{**vars(opt), "cuda_graph": False})
        result["stages"] = {name: stages_of(Side(name, eager), batches, own.steps) for name in names}
    del sides
    if not own.no_memory:
        result["memory"] = {name: memory_in_a_process(argv, mode, name) for name in names}
    return result


@entry_point
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    own, rest = parse(argv)
    modes = own.modes.split(",")
    if own.memory_of:
        side = Side(own.memory_of, options_of(own, rest, modes[0]))
        batches = batches_of(side.opt, None)
        for _ in range(2):
            side.step(next(batches))
        print(peak_memory(side.model.device))
        return
    facts = versions_and_hardware(torch.device(own.device))
    results = []
    for mode in modes:
        results.append(measure(own, rest, argv, mode))
        print(f"{mode}: {written(results[-1]['steps']['fast']['step_ms'])} ms a step", file=sys.stderr)
    speed = ", ".join(f"{name} {value}" for name, value in results[0]["speed"].items())
    print(f"{own.size} x {own.size}, batch {results[0]['batch_size']}; fast: {speed}")
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n")
    print(report(results))
    if own.json:
        Path(own.json).write_text(
            json.dumps({"machine": facts, "command": argv, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    sys.exit(main())
