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

import json
import math
import multiprocessing
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
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
from util.device import get_device
from util.errors import UserError, entry_point
from util.metrics.receipt import versions_and_hardware

Timed = dict[str, dict[str, float]]  # a spread in milliseconds, by side


def known_modes() -> dict[str, Sequence[str]]:
    """The options of train.py behind each mode."""
    systems = {name: words for name, words in CONFIGS.items() if "--model=qs" not in words}
    models = {name: [f"--model={name}"] for name in MODELS if name != "qs"}
    return {mode: ["--model=qs", f"--QS_mode={mode}"] for mode in qs_attn.MODES} | models | systems


def synthetic_batches(opt: Namespace) -> Iterator[dict]:
    """Four batches in turn, without end; in pinned memory for CUDA."""
    generator = torch.Generator().manual_seed(opt.seed)
    size = (opt.batch_size, 3, opt.crop_size, opt.crop_size)
    batches = []
    for number in range(4):
        batch = {name: torch.rand(size, generator=generator) * 2 - 1 for name in "AB"}
        if opt.gpu_ids and torch.cuda.is_available():
            batch = {name: images.pin_memory() for name, images in batch.items()}
        if opt.domains:
            targets = torch.arange(number, number + opt.batch_size) % len(opt.domains)
            batch |= {"A_domain": (targets + 1) % len(opt.domains), "B_domain": targets}
        paths = [f"{number}_{image}.png" for image in range(opt.batch_size)]
        batches.append(batch | {"A_paths": paths, "B_paths": paths})
    return cycle(batches)


def time_in_turn(
    sides: list[Side], call: Callable[[Side], object], untimed: int, rounds: int
) -> tuple[Timed, dict[str, float]]:
    """Times of `rounds` calls with each side in turn, after `untimed` ones; seconds of the very first."""
    times = defaultdict(list)
    for _ in range(untimed + rounds):
        for side in sides:
            times[side.name].append(seconds(lambda side=side: call(side), side.model.device))
    timed = {name: spread(of_side[untimed:]) for name, of_side in times.items()}
    return timed, {name: of_side[0] for name, of_side in times.items()}


def memory_of(name: str, opt: Namespace) -> int | None:
    """Peak memory in bytes of two steps of one side, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_of_two_steps, name, opt).result()


def _peak_of_two_steps(name: str, opt: Namespace) -> int | None:
    side, batches = Side(name, opt), synthetic_batches(opt)
    for _ in range(2):
        side.step(next(batches))
    return peak_memory(side.model.device)


def report(results: list[dict]) -> str:
    """The Markdown table of all modes."""
    head = ["mode", "plain, ms per step (quartiles)", "fast", "speed-up", "plain, ms per image", "fast"]
    head += ["speed-up", "plain, peak GB", "fast", "first fast step, s"]
    rows = []
    for result in results:
        row = [result["mode"]]
        for times in (result["steps"], result.get("images", {})):
            plain, fast = times.get("plain"), times.get("fast")
            ratio = f"{plain['median'] / fast['median']:.2f}" if plain and fast else "-"
            row += [format_spread(plain), format_spread(fast), ratio]
        memory = [result.get("memory", {}).get(side) for side in ("plain", "fast")]
        row += [f"{peak / 1e9:.2f}" if peak else "-" for peak in memory]
        rows.append([*row, f"{result['first_step_s']['fast']:.1f}"])
    return markdown_table(head, rows)


def parse(argv: list[str]) -> tuple[Namespace, list[str]]:
    """The benchmark's own options, and the words for train.py."""
    parser = ArgumentParser(prog="scripts/benchmark.py", description=__doc__.splitlines()[0])
    parser.epilog = (
        "All other options are those of train.py, such as --precision, --fast, --ngf, --batch_size."
    )
    add = parser.add
    add("--modes", "global,local,local_global,cut", f"modes to time, of {', '.join(known_modes())}")
    add("--size", 256, "side of the images in pixels", type=integer(1))
    add("--device", None, "where", choices=("cuda", "mps", "cpu"), shown="the first available")
    add("--steps", 10, "timed steps of each side", type=integer(1))
    add("--warmup", 3, "untimed steps before them, after a first one", type=integer(0))
    add("--images", 10, "timed batches of inference; 0: none", type=integer(0))
    add("--inference_batch", 8, "images in each", type=integer(1))
    add("--no_plain", False, "the fast side alone, where the plain one does not fit")
    add("--no_memory", False, "do not measure memory in separate processes")
    add("--json", None, "file to write all numbers to", type=Path)
    given, rest = parser.parse_known_args(argv)
    own = Namespace(**{**parser.defaults, **vars(given)})
    own.modes = own.modes.split(",")
    for mode in own.modes:
        if mode not in known_modes():
            raise UserError(f"--modes names {mode!r}, but there are {', '.join(known_modes())}")
    if {"model", "QS_mode"} & set(TrainOptions().parser.parse_given(rest)):
        raise UserError("the benchmark takes models and modes by --modes, not by --model and --QS_mode")
    found = get_device([] if own.device == "cpu" else [0]).type
    if own.device not in (None, found):
        raise UserError(f"--device {own.device} was not found; there is {found}")
    own.device = found
    return own, rest


def options_of(own: Namespace, rest: list[str], mode: str) -> Namespace:
    """The options of the fast side in a mode."""
    words = ["--gpu_ids", "-1" if own.device == "cpu" else "0", "--crop_size", str(own.size)]
    words += ["--load_size", str(math.ceil(own.size * 286 / 256))]
    words += known_modes()[mode]
    words += ["--vgg_weights=random"] * ("--model=sesim" in words)  # times do not depend on the weights
    return TrainOptions().parse([*words, *rest])


def measure(own: Namespace, rest: list[str], mode: str) -> dict:
    """All numbers of one mode."""
    opt = options_of(own, rest, mode)
    names = ["fast"] if own.no_plain or opt.model not in TEXTBOOKS else ["plain", "fast"]
    sides = [Side(name, opt) for name in names]
    speed = {name: getattr(opt, name) for name in PLAIN}
    result = {"mode": mode, "size": own.size, "batch_size": opt.batch_size, "speed": speed}
    batches = {name: synthetic_batches(opt) for name in names}
    result["steps"], result["first_step_s"] = time_in_turn(
        sides, lambda side: side.step(next(batches[side.name])), 1 + own.warmup, own.steps
    )
    if own.images:
        images = torch.rand(own.inference_batch, 3, own.size, own.size) * 2 - 1
        timed, _ = time_in_turn(sides, lambda side: side.translate(images), 2, own.images)
        result["images"] = {
            side: {name: ms / len(images) for name, ms in times.items()} for side, times in timed.items()
        }
    del sides
    if not own.no_memory:
        result["memory"] = {name: memory_of(name, opt) for name in names}
    return result


@entry_point
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    own, rest = parse(argv)
    machine = versions_and_hardware(torch.device(own.device))
    results = []
    for mode in own.modes:
        results.append(measure(own, rest, mode))
        print(f"{mode}: {format_spread(results[-1]['steps']['fast'])} ms per step", file=sys.stderr)
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
