"""Time the training step against the textbook step.

    python scripts/benchmark.py [--modes global,local,cut] [--size 256] [options of train.py]

A mode is one of QS-Attn, a model, or a system of `scripts/systems.txt`. Two sides, each with its own networks
of the same weights: the plain step (`models/textbook`: released order, full attention matrices, float32,
eager, NCHW; on CUDA with TF32 convolutions and cuDNN's search, as PyTorch ships and the released code sets
them), and the training step under the speed options given (--precision, --channels_last, --cuda_graph,
--fast). The sides alternate step by step, so that other load on the machine affects both; each step is timed
between synchronisations and reported as median and quartiles. A first, untimed step captures. Peak memory is
measured in a separate process for each side. Models other than CUT and QS-Attn have no plain step and are
timed alone. Images are synthetic.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from models import MODELS, qs_attn
from models.textbook import TEXTBOOKS
from options.train_options import TrainOptions
from scripts.configurations import CONFIGS
from scripts.measuring import PLAIN, Side, format_spread, markdown_table, peak_memory, seconds, spread
from util.arguments import ArgumentParser, integer
from util.errors import UserError, entry_point
from util.metrics.receipt import versions_and_hardware


def known_modes() -> dict[str, Sequence[str]]:
    """The options of train.py behind each mode."""
    systems = {name: words for name, words in CONFIGS.items() if "--model=qs" not in words}
    models = {name: [f"--model={name}"] for name in MODELS if name != "qs"}
    return {mode: [f"--QS_mode={mode}"] for mode in qs_attn.MODES} | models | systems


def synthetic_batches(opt: Namespace) -> Iterator[dict]:
    """Four batches in turn, without end; in pinned memory for CUDA."""
    generator = torch.Generator().manual_seed(opt.seed)
    size = (opt.batch_size, 3, opt.crop_size, opt.crop_size)
    batches = []
    for number in range(4):
        batch = {name: torch.rand(size, generator=generator) * 2 - 1 for name in "AB"}
        if opt.gpu_ids and torch.cuda.is_available():
            batch = {name: images.pin_memory() for name, images in batch.items()}
        paths = [f"{number}_{image}.png" for image in range(opt.batch_size)]
        batches.append(batch | {"A_paths": paths, "B_paths": paths})
    return cycle(batches)


def time_steps(sides: list[Side], batches: Iterator[dict], warmup: int, steps: int) -> dict[str, dict]:
    """Training steps of the sides in turn, on the same batches."""
    first, times = {}, defaultdict(list)
    for number in range(1 + warmup + steps):
        batch = next(batches)
        for side in sides:
            took = seconds(lambda side=side, batch=batch: side.step(batch), side.model.device)
            if number == 0:
                first[side.name] = took
            elif number > warmup:
                times[side.name].append(took)
    return {name: {"step_ms": spread(times[name]), "first_step_s": first[name]} for name in times}


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


def memory_in_a_process(argv: list[str], mode: str, side: str) -> int | None:
    """Peak memory of two steps of one side in a new process; None, with the reason on stderr, if it fails."""
    command = [sys.executable, __file__, *argv, "--modes", mode, "--memory_of", side]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        print(f"memory of {side}, {mode}: {run.stderr.strip()[-500:]}", file=sys.stderr)
        return None
    return int(run.stdout.split()[-1])


def report(results: list[dict]) -> str:
    """The Markdown table of all modes."""
    head = ["mode", "plain, ms per step (quartiles)", "fast", "speed-up", "plain, ms per image", "fast"]
    head += ["speed-up", "plain, peak GB", "fast", "first fast step, s"]
    rows = []
    for result in results:
        row = [result["mode"]]
        steps = {side: timed["step_ms"] for side, timed in result["steps"].items()}
        for times in (steps, result.get("images", {})):
            plain, fast = times.get("plain"), times.get("fast")
            ratio = f"{plain['median'] / fast['median']:.2f}" if plain and fast else "-"
            row += [format_spread(plain), format_spread(fast), ratio]
        memory = [result.get("memory", {}).get(side) for side in ("plain", "fast")]
        row += [f"{peak / 1e9:.2f}" if peak else "-" for peak in memory]
        rows.append([*row, f"{result['steps']['fast']['first_step_s']:.1f}"])
    return markdown_table(head, rows)


def parse(argv: list[str]) -> tuple[Namespace, list[str]]:
    """The benchmark's own options, and the words for train.py."""
    parser = ArgumentParser(prog="scripts/benchmark.py", description=__doc__.splitlines()[0])
    parser.epilog = (
        "All other options are those of train.py, such as --precision, --fast, --ngf, --batch_size."
    )
    add = parser.add
    add(
        "--modes",
        None,
        f"modes to time, of {', '.join(known_modes())}",
        shown="that of --model, else QS-Attn's and cut",
    )
    add("--size", 256, "side of the images in pixels", type=integer(1))
    add("--device", None, "where", choices=("cuda", "mps", "cpu"), shown="the first available")
    add("--steps", 10, "timed steps of each side", type=integer(1))
    add("--warmup", 3, "untimed steps before them, after a first one", type=integer(0))
    add("--images", 10, "timed batches of inference; 0: none", type=integer(0))
    add("--inference_batch", 8, "images in each", type=integer(1))
    add("--no_plain", False, "the fast side alone, where the plain one does not fit")
    add("--no_memory", False, "do not measure memory in separate processes")
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
        return list(qs_attn.MODES) + ["cut"] * ("model" not in given)
    modes = own.modes.split(",")
    for mode in modes:
        if mode not in known_modes():
            raise UserError(f"--modes names {mode!r}, but there are {', '.join(known_modes())}")
    for name in ("model", "QS_mode"):
        if name in given and not own.memory_of:
            raise UserError(f"--modes and --{name} both say what is timed: give one of them")
    return modes


def options_of(own: Namespace, rest: list[str], mode: str) -> Namespace:
    """The options of the fast side in a mode."""
    words = ["--gpu_ids", "-1" if own.device == "cpu" else "0", "--crop_size", str(own.size)]
    words += ["--load_size", str(math.ceil(own.size * 286 / 256))]
    words += known_modes()[mode]
    words += ["--vgg_weights=random"] * ("--model=sesim" in words)  # times do not depend on the weights
    return TrainOptions().parse([*words, *rest])


def measure(own: Namespace, rest: list[str], argv: list[str], mode: str) -> dict:
    """All numbers of one mode."""
    opt = options_of(own, rest, mode)
    names = ["fast"] if own.no_plain or opt.model not in TEXTBOOKS else ["plain", "fast"]
    sides = [Side(name, opt) for name in names]
    speed = {name: getattr(opt, name) for name in PLAIN}
    result = {"mode": mode, "size": own.size, "batch_size": opt.batch_size, "speed": speed}
    result["steps"] = time_steps(sides, synthetic_batches(opt), own.warmup, own.steps)
    if own.images:
        result["images"] = time_images(sides, own.inference_batch, own.images)
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
        batches = synthetic_batches(side.opt)
        for _ in range(2):
            side.step(next(batches))
        print(peak_memory(side.model.device))
        return
    machine = versions_and_hardware(torch.device(own.device))
    results = []
    for mode in own.modes:
        results.append(measure(own, rest, argv, mode))
        times = format_spread(results[-1]["steps"]["fast"]["step_ms"])
        print(f"{mode}: {times} ms per step", file=sys.stderr)
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
