"""Time the training step against the textbook step.

    python scripts/benchmark.py [--modes global,local] [--size 256] [options of train.py]
    python scripts/benchmark.py --model cycle_gan [--size 256] [options of train.py]

Two sides, each with its own networks of the same weights: the plain step (`models/textbook`: released
order, full attention matrices, float32, eager, NCHW; on CUDA with TF32 convolutions and cuDNN's search, as
PyTorch ships and the released code sets them), and the training step under the speed options given
(--precision, --channels_last, --cuda_graph, --fast). The sides alternate step by step, so that
other load on the machine affects both; each step is timed between synchronisations and reported as median and
quartiles. A first, untimed step compiles and captures. Peak memory is measured in a separate process for each
side. The models other than CUT and QS-Attn have no plain step and are timed alone.

Images are synthetic unless --dataroot names a data set.
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
from torch import Tensor, nn

from models import MODELS, create_model, textbook
from models.patch_sampler import PatchSelection
from models.qs_attn import QuerySelection
from models.textbook import TEXTBOOKS, TextbookStep
from options.train_options import TrainOptions
from scripts.configurations import CONFIGS
from scripts.measuring import StageClock, format_spread, markdown_table, peak_memory, seconds, spread
from util.arguments import ArgumentParser, integer
from util.errors import UserError, entry_point
from util.metrics.receipt import versions_and_hardware

QS_MODES = {mode: ["--QS_mode", mode] for mode in ("global", "local", "local_global")}
# QS-Attn's modes, the other models, and the other configurations of a study.
MODES = QS_MODES | {name: [f"--model={name}"] for name in MODELS if name != "qs"}
MODES |= {name: list(words) for name, words in CONFIGS.items() if "--model=qs" not in words}
for words in MODES.values():
    words += ["--vgg_weights=random"] * ("--model=sesim" in words)  # times do not depend on the weights
# The speed options of the plain side.
PLAIN = {"precision": "fp32", "channels_last": False, "cuda_graph": False, "fast": False}
# Methods of networks that make stages of a step.
METHODS = ("forward", "encode", "decode", "attend", "raw_map")


class Side:
    """One way to run the step.

    Args:
        name: "plain" for the textbook step, "fast" for the training step.
        opt: options of train.py; the plain side takes none of the speed options.
        search: whether the plain side lets cuDNN search for the fastest algorithms.
    """

    def __init__(self, name: str, opt: Namespace, search: bool = True):
        self.name, self.search = name, search
        self.opt = opt if name == "fast" else Namespace(**{**vars(opt), **PLAIN})
        torch.manual_seed(opt.seed)
        self.model = create_model(self.opt)
        self.runner = self.model if name == "fast" else TextbookStep(self.model)
        self.networks = self.runner.networks

    def step(self, batch: dict) -> None:
        """One training step."""
        self._set_switches()
        self.model.set_input(batch)
        self.runner.optimize_parameters()

    def translate(self, images: Tensor) -> None:
        """Translate images (B, C, H, W): one at a time on the plain side, all at once on the fast side."""
        self._set_switches()
        self.runner.translate(images.to(self.model.device))

    def _set_switches(self) -> None:
        """cuDNN's switches are global; the fast side sets its own in each step."""
        if self.name == "plain":
            torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, self.search


def endless_batches(opt: Namespace, dataroot: str | None) -> Iterator[dict]:
    """Batches without end: of a data set, on the device, or four synthetic ones in turn (pinned on CUDA)."""
    if dataroot:
        from data import create_loader
        from util.device import get_device

        loader = create_loader(opt, get_device(opt.gpu_ids))
        for epoch in range(1, sys.maxsize):
            yield from loader.epoch(epoch)
    generator = torch.Generator().manual_seed(opt.seed)
    size = (opt.batch_size, 3, opt.crop_size, opt.crop_size)
    batches = []
    for number in range(4):
        batch = {name: torch.rand(size, generator=generator) * 2 - 1 for name in "AB"}
        if opt.gpu_ids and torch.cuda.is_available():
            batch = {name: images.pin_memory() for name, images in batch.items()}
        paths = [f"{number}_{image}.png" for image in range(opt.batch_size)]
        batches.append(batch | {"A_paths": paths, "B_paths": paths})
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
    timed = {name: {"step_ms": spread(times[name]), "first_step_s": first[name]} for name in times}
    return {**timed, "data_wait_ms": spread(waits[-steps:])}


def time_images(sides: list[Side], batch: int, rounds: int) -> dict[str, dict]:
    """Milliseconds per image of inference, `batch` images at a time, the sides in turn."""
    size = sides[0].opt.crop_size
    images, times = torch.rand(batch, 3, size, size) * 2 - 1, defaultdict(list)
    for number in range(2 + rounds):
        for side in sides:
            took = seconds(lambda side=side: side.translate(images), side.model.device)
            if number >= 2:
                times[side.name].append(took / batch)
    return {name: spread(of_side) for name, of_side in times.items()}


def time_stages(side: Side, batches: Iterator[dict], steps: int) -> dict[str, float]:
    """Milliseconds of a step in each stage, synchronised between stages.

    Stages are METHODS of the networks and of the model's other modules, such as G.encode and
    patchnce.forward, and what a step does besides. On the plain side routing counts as "select", as one
    function does both.
    """
    model = side.model
    places = [
        ("data", model, "set_input"),
        *(
            (f"{name}.{method}", module, method)
            for name, module in modules_of(side).items()
            for method in METHODS
        ),
        ("select", model, "choose_patches"),
        ("select", textbook, "plain_qs_attn"),
        ("route", QuerySelection, "route"),
        ("route", PatchSelection, "route"),
        ("backward", Tensor, "backward"),
        ("optimiser", model.guard, "check"),
        *(("optimiser", optimizer, "step") for optimizer in side.runner.optimizers.values()),
    ]
    places = [(stage, owner, name) for stage, owner, name in places if hasattr(owner, name)]
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
    stages = dict.fromkeys([*(stage for stage, _, _ in places), "other"])
    return {stage: 1e3 * clock.totals[stage] / steps for stage in stages if clock.totals[stage]}


def modules_of(side: Side) -> dict[str, nn.Module]:
    """The networks of a side by name, and the modules that are attributes of its model and its step."""
    found = dict(side.networks)
    for name, value in [*vars(side.model).items(), *vars(side.runner).items()]:
        if isinstance(value, nn.Module) and not any(value is module for module in found.values()):
            found[name] = value
    return found


def memory_in_a_process(argv: list[str], mode: str, side: str) -> int | None:
    """Peak memory of two steps of one side in a new process; None, with the reason on stderr, if it fails."""
    command = [sys.executable, __file__, *argv, "--modes", mode, "--memory_of", side]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        print(f"memory of {side}, {mode}: {run.stderr.strip()[-500:]}", file=sys.stderr)
        return None
    return int(run.stdout.split()[-1])


def report(results: list[dict]) -> str:
    """The Markdown tables of all modes."""
    head = ["mode", "plain, ms per step (quartiles)", "fast", "speed-up", "plain, ms per image", "fast"]
    head += ["speed-up", "plain, peak GB", "fast", "first fast step, s"]
    rows = []
    for result in results:
        row = [result["mode"]]
        images = result.get("images", {})
        steps = {side: timed["step_ms"] for side, timed in result["steps"].items() if "step_ms" in timed}
        for times in (steps, images):
            plain, fast = times.get("plain"), times.get("fast")
            ratio = f"{plain['median'] / fast['median']:.2f}" if plain and fast else "-"
            row += [format_spread(plain), format_spread(fast), ratio]
        memory = [result.get("memory", {}).get(side) for side in ("plain", "fast")]
        row += [f"{peak / 1e9:.2f}" if peak else "-" for peak in memory]
        rows.append([*row, f"{result['steps']['fast']['first_step_s']:.1f}"])
    text = markdown_table(head, rows)
    for result in results:
        if "stages" in result:
            sides = result["stages"]
            stages = dict.fromkeys(stage for of in sides.values() for stage in of)
            rows = [
                [stage, *(f"{of[stage]:.4g}" if stage in of else "-" for of in sides.values())]
                for stage in stages
            ]
            text += f"\n\nStages of a step, {result['mode']}, ms (eager, not captured):\n\n"
            text += markdown_table(["stage", *sides], rows)
    return text


def parse(argv: list[str]) -> tuple[Namespace, list[str]]:
    """The benchmark's own options, and the words for train.py."""
    parser = ArgumentParser(prog="scripts/benchmark.py", description=__doc__.splitlines()[0])
    parser.epilog = (
        "All other options are those of train.py, such as --precision, --fast, --ngf, --batch_size."
    )
    add = parser.add
    known = f"of {', '.join(MODES)}"
    add("--modes", None, f"modes to time, {known}", shown="that of --model, else QS-Attn's three and cut")
    add("--size", 256, "side of the images in pixels", type=integer(1))
    add("--device", None, "where", choices=("cuda", "mps", "cpu"), shown="the first available")
    add("--steps", 10, "timed steps of each side", type=integer(1))
    add("--warmup", 3, "untimed steps before them, after a first one", type=integer(0))
    add("--images", 10, "timed batches of inference; 0: none", type=integer(0))
    add("--inference_batch", 8, "images in each", type=integer(1))
    add("--stages", False, "also time the stages of a step")
    add("--no_plain", False, "the fast side alone, where the plain one does not fit")
    add("--no_memory", False, "do not measure memory in separate processes")
    add("--dataroot", None, "a data set to take the images from", shown="synthetic images")
    add("--json", None, "file to write all numbers to", type=Path)
    add("--memory_of", None, argparse.SUPPRESS, choices=("plain", "fast"))
    given, rest = parser.parse_known_args(argv)
    own = Namespace(**{**parser.defaults, **vars(given)})
    own.modes = _modes(own, TrainOptions().parser.parse_given(rest))
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [name for name in found if found[name]]
    own.device = own.device or available[0]
    if own.device not in available:
        raise UserError(f"--device {own.device} was not found; there are {', '.join(available)}")
    return own, rest


def _modes(own: Namespace, given: dict[str, object]) -> list[str]:
    """The modes that --modes names; without it those of --model and --QS_mode, if they are `given`."""
    if own.modes is None:
        if given.get("model", "qs") != "qs":
            return [given["model"]]
        if "QS_mode" in given:
            return [given["QS_mode"]]
        return list(QS_MODES) + ["cut"] * ("model" not in given)
    modes = own.modes.split(",")
    for mode in modes:
        if mode not in MODES and mode not in MODELS:
            raise UserError(f"--modes names {mode!r}, but there are {', '.join(MODES)}")
    for name in ("model", "QS_mode"):
        if name in given and not own.memory_of:
            raise UserError(f"--modes and --{name} both say what is timed: give one of them")
    return modes


def options_of(own: Namespace, rest: list[str], mode: str) -> Namespace:
    """The options of the fast side in a mode."""
    words = ["--gpu_ids", "-1" if own.device == "cpu" else "0", "--crop_size", str(own.size)]
    words += ["--load_size", str(math.ceil(own.size * 286 / 256))]
    words += ["--dataroot", own.dataroot] if own.dataroot else []
    return TrainOptions().parse([*words, *MODES.get(mode, ["--model", mode]), *rest])


def measure(own: Namespace, rest: list[str], argv: list[str], mode: str) -> dict:
    """All numbers of one mode."""
    opt = options_of(own, rest, mode)
    names = ["fast"] if own.no_plain or opt.model not in TEXTBOOKS else ["plain", "fast"]
    sides = [Side(name, opt) for name in names]
    batches = endless_batches(opt, own.dataroot)
    speed = {name: getattr(opt, name) for name in PLAIN}
    result = {"mode": mode, "size": own.size, "batch_size": opt.batch_size, "speed": speed}
    result["steps"] = time_steps(sides, batches, own.warmup, own.steps)
    if own.images:
        result["images"] = time_images(sides, own.inference_batch, own.images)
    if own.stages:
        eager = Namespace(**{**vars(opt), "cuda_graph": False})
        result["stages"] = {name: time_stages(Side(name, eager), batches, own.steps) for name in names}
    del sides
    if not own.no_memory:
        result["memory"] = {name: memory_in_a_process(argv, mode, name) for name in names}
    return result


@entry_point
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    own, rest = parse(argv)
    if own.memory_of:
        side = Side(own.memory_of, options_of(own, rest, own.modes[0]))
        batches = endless_batches(side.opt, None)
        for _ in range(2):
            side.step(next(batches))
        print(peak_memory(side.model.device))
        return
    machine = versions_and_hardware(torch.device(own.device))
    results = []
    for mode in own.modes:
        results.append(measure(own, rest, argv, mode))
        print(
            f"{mode}: {format_spread(results[-1]['steps']['fast']['step_ms'])} ms per step", file=sys.stderr
        )
    speed = ", ".join(f"{name} {value}" for name, value in results[0]["speed"].items())
    print(f"{own.size} x {own.size}, batch {results[0]['batch_size']}; fast: {speed}")
    facts = {**machine["versions"], "device": machine["device"], **machine["hardware"]}
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value is not None), end="\n\n")
    print(report(results))
    if own.json:
        numbers = {"machine": machine, "command": argv, "results": results}
        own.json.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
