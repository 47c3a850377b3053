"""What the sections of `scripts/gpu/check.py` share: the device and its clocks, images, models, and the report they write."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models import create_model
from options.train_options import TrainOptions

IMAGES = (".jpg", ".jpeg", ".png")


class Report:
    """Collects a section's findings; every addition is written to the file `path`."""

    def __init__(self, path: Path):
        self.path, self.markdown, self.data = path, "", {}

    def say(self, text: str) -> None:
        self.markdown += text + "\n\n"
        self.save()

    def table(self, head: list[str], rows: list[list]) -> None:
        lines = ["| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows]]
        self.say("\n".join(lines))

    def save(self) -> None:
        self.path.write_text(json.dumps({"markdown": self.markdown, "data": self.data}), encoding="utf-8")


class Bench:
    """What the sections share: the device, sizes, images, models and clocks."""

    def __init__(self, dataroot: str, cpu: bool, out: Path):
        self.out = out
        self.dataroot = Path(dataroot) if dataroot else None
        self.cpu = cpu
        self.device = torch.device("cpu") if cpu else torch.device("cuda", 0)
        self.size = 32 if cpu else 256
        self.steps = 2 if cpu else 50
        self.words = "--gpu_ids -1 --ngf 4 --ndf 4 --netF_nc 16 --num_patches 16" if cpu else "--gpu_ids 0"

    def model(self, words: str = ""):
        torch.manual_seed(0)
        return create_model(TrainOptions().parse(f"{self.words} {words}".split()))

    def images(self, folder: str, count: int, size: int) -> Tensor:
        """(count, 3, size, size) in [-1, 1]: of the data set, or else smooth noise."""
        files = (
            sorted(p for p in (self.dataroot / folder).iterdir() if p.suffix.lower() in IMAGES)
            if self.dataroot
            else []
        )
        if not files:
            generator = torch.Generator().manual_seed(len(folder))
            noise = torch.rand(count, 3, size // 8, size // 8, generator=generator) * 2 - 1
            return F.interpolate(noise, size=(size, size), mode="bicubic").clamp(-1, 1)
        arrays = [
            np.asarray(Image.open(f).convert("RGB").resize((size, size), Image.BICUBIC))
            for f in files[:count]
        ]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous() / 127.5 - 1

    def batches(self, count: int, size: int | None = None, images: int = 1) -> list[dict[str, Tensor]]:
        """Batches of so many pairs on the device, so that data do not enter the clock."""
        sets = {name: self.images(f"train{name}", count, size or self.size).to(self.device) for name in "AB"}
        return [
            {
                name: all_images.roll(-n, 0)[[m % len(all_images) for m in range(images)]]
                for name, all_images in sets.items()
            }
            for n in range(count)
        ]

    def synchronize(self) -> None:
        if not self.cpu:
            torch.cuda.synchronize()

    def milliseconds(self, step: Callable[[int], None], warm_up: int, steps: int) -> list[float]:
        """Time of each of `steps` calls after `warm_up` others, in ms: back to back, as training runs them."""
        for number in range(warm_up):
            step(number)
        self.synchronize()
        if self.cpu:
            times = []
            for number in range(steps):
                begun = time.perf_counter()
                step(number)
                times.append(1e3 * (time.perf_counter() - begun))
            return times
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        marks[0].record()
        for number in range(steps):
            step(number)
            marks[number + 1].record()
        self.synchronize()
        return [a.elapsed_time(b) for a, b in zip(marks, marks[1:], strict=False)]

    def time_training(self, model, optimize: Callable[[], None], batches: list[dict]) -> dict:
        """Median ms of a step with its spread, the first step's seconds (compiling, capturing), peak memory in GB."""

        def step(number: int) -> None:
            model.set_input(batches[number % len(batches)])
            optimize()

        if not self.cpu:
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        step(0)
        self.synchronize()
        first = time.perf_counter() - begun
        times = sorted(self.milliseconds(step, 1 if self.cpu else 10, self.steps))
        peak = 0.0 if self.cpu else torch.cuda.max_memory_allocated() / 1e9
        return {
            "ms": statistics.median(times),
            "p10": times[len(times) // 10],
            "p90": times[len(times) * 9 // 10],
            "first_s": first,
            "peak_GB": peak,
        }


@contextmanager
def freed() -> Iterator[None]:
    """Give memory back to the device at the end, for the next to start from nothing."""
    try:
        yield
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
