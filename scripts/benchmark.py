"""Time the training step against the textbook step.

    python scripts/benchmark.py [--modes global,local,cut] [--size 256] [options of train.py]

A mode is one of QS-Attn, a model, or a system of `scripts/systems.txt`. Two sides with the same weights, the
textbook step (eager float32, on CUDA with TF32 convolutions, as released) and the training step under the
speed options given, such as --fast, alternate, so that other load on the machine affects both. Models other
than CUT and QS-Attn have no textbook step and are timed alone.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F

from models import MODELS, create_model, qs_attn
from models.textbook import TEXTBOOKS, TextbookStep
from options.train_options import TrainOptions
from scripts.compare import CONFIGS
from scripts.judging import markdown_table, versions_and_hardware
from util.arguments import ArgumentParser, integer, some_of
from util.errors import UserError, entry_point

# The speed options of the textbook step.
PLAIN = {"precision": "fp32", "channels_last": False, "cuda_graph": False, "fast": False}


class Side:
    """The training step under the options `opt`, or the textbook step, on four batches in turn."""

    def __init__(self, opt: Namespace, textbook: bool = False):
        self.textbook, self.opt = textbook, Namespace(**{**vars(opt), **PLAIN}) if textbook else opt
        torch.manual_seed(opt.seed)
        self.model = create_model(self.opt)
        self.runner = TextbookStep(self.model) if textbook else self.model
        self.batches = cycle(synthetic_batches(opt, self.model.device, 4))

    def step(self) -> None:
        if self.textbook:  # cuDNN's switches are global; the training step sets its own each time
            torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
        self.model.set_input(next(self.batches))
        self.runner.optimize_parameters()


def synthetic_batches(opt: Namespace, device: torch.device, count: int) -> list[dict]:
    """Batches of smooth noise on the device, so that loading is not timed."""
    generator = torch.Generator().manual_seed(0)
    images, size, batches = opt.batch_size, opt.crop_size, []
    for number in range(count):
        noise = torch.rand(2 * images, 3, max(1, size // 8), max(1, size // 8), generator=generator) * 2 - 1
        smooth = F.interpolate(noise, size=(size, size), mode="bicubic").clamp(-1, 1).to(device)
        batch = dict(zip("AB", smooth.split(images), strict=True))
        if opt.domains:
            targets = torch.arange(number, number + images) % len(opt.domains)
            batch |= {"A_domain": (targets + 1) % len(opt.domains), "B_domain": targets}
        paths = [f"{number}_{image}.png" for image in range(images)]
        batches.append({**batch, "A_paths": paths, "B_paths": paths})
    return batches


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, with all the work that it queues on the device."""
    wait = getattr(torch, device.type).synchronize if device.type in ("cuda", "mps") else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def time_steps(sides: Sequence[Side], untimed: int, steps: int) -> tuple[list[list[float]], list[float]]:
    """Seconds of `steps` steps of the sides in turn, after `untimed` ones; and of each side's very first."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(untimed + steps):
        for side, of_side in zip(sides, times, strict=True):
            of_side.append(seconds(side.step, side.model.device))
    return [of_side[untimed:] for of_side in times], [of_side[0] for of_side in times]


def format_spread(times: Sequence[float]) -> str:
    """Median and quartiles in milliseconds of times in seconds, as 6.8 (6.76-6.88)."""
    low, middle, high = 1e3 * np.percentile(times, (25, 50, 75))
    return f"{middle:.4g} ({low:.4g}-{high:.4g})"


def facts_of(device: torch.device) -> str:
    """Versions and hardware on one line."""
    found = versions_and_hardware(device)
    facts = {**found["versions"], "device": found["device"], **found["hardware"]}
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def known_modes() -> dict[str, Sequence[str]]:
    """The options of train.py behind each mode."""
    systems = {name: words for name, words in CONFIGS.items() if "--model=qs" not in words}
    models = {name: [f"--model={name}"] for name in MODELS if name != "qs"}
    return {mode: ["--model=qs", f"--QS_mode={mode}"] for mode in qs_attn.MODES} | models | systems


def parse(argv: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    """The benchmark's own options, and the words for train.py."""
    parser = ArgumentParser(prog="scripts/benchmark.py", description=__doc__.splitlines()[0])
    parser.epilog = "All other options are those of train.py, such as --precision, --fast, --gpu_ids, --ngf."
    add = parser.add
    modes = f"modes to time, of {', '.join(known_modes())}"
    add("--modes", ["global", "local", "local_global", "cut"], modes, type=some_of(known_modes()))
    add("--size", 256, "side of the images in pixels", type=integer(1))
    add("--steps", 10, "timed steps of each side", type=integer(1))
    add("--warmup", 3, "untimed steps before them, after a first one", type=integer(0))
    given, rest = parser.parse_known_args(argv)
    own = Namespace(**{**parser.defaults, **vars(given)})
    if {"model", "QS_mode"} & set(TrainOptions().parser.parse_given(rest)):
        raise UserError("the benchmark takes models and modes by --modes, not by --model and --QS_mode")
    return own, rest


def sides_of(own: Namespace, rest: Sequence[str], mode: str) -> list[Side]:
    """The sides of a mode, the training step last."""
    words = [f"--crop_size={own.size}", f"--load_size={own.size}", *known_modes()[mode]]
    words += ["--vgg_weights=random"] * ("--model=sesim" in words)  # times do not depend on the weights
    opt = TrainOptions().parse([*words, *rest])
    textbook = [Side(opt, textbook=True)] if opt.model in TEXTBOOKS else []
    return [*textbook, Side(opt)]


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    own, rest = parse(argv)
    rows = []
    for mode in own.modes:
        sides = sides_of(own, rest, mode)
        times, first = time_steps(sides, 1 + own.warmup, own.steps)
        ratio = f"{median(times[0]) / median(times[1]):.2f}" if len(sides) > 1 else "-"
        rows.append([mode, *["-"] * (2 - len(sides)), *map(format_spread, times), ratio, f"{first[-1]:.1f}"])
        print(f"{mode}: {format_spread(times[-1])} ms per step", file=sys.stderr)
    opt = sides[-1].opt
    speed = ", ".join(f"{name} {getattr(opt, name)}" for name in PLAIN)
    print(f"{own.size} x {own.size}, batch {opt.batch_size}; training step: {speed}")
    print(facts_of(sides[-1].model.device), end="\n\n")
    head = ["mode", "textbook, ms per step (quartiles)", "training step", "speed-up", "its first step, s"]
    print(markdown_table(head, rows))


if __name__ == "__main__":
    sys.exit(main())
