"""What the sections of `scripts/gpu/check.py` share: device, sizes, images, sides to time, and the report."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from options.train_options import TrainOptions
from scripts.benchmark import Side
from scripts.measuring import back_to_back, markdown_table, seconds, spread
from util.image_files import list_images, open_rgb


class Report:
    """Collects a section's findings; every addition is written to the file `path`."""

    def __init__(self, path: Path):
        self.path, self.markdown, self.data = path, "", {}

    def say(self, text: str) -> None:
        """Add a paragraph."""
        self.markdown += text + "\n\n"
        self.save()

    def table(self, head: list[str], rows: list[list]) -> None:
        """Add a Markdown table."""
        self.say(markdown_table(head, rows))

    def save(self) -> None:
        """Write the report as it is now."""
        self.path.write_text(json.dumps({"markdown": self.markdown, "data": self.data}), encoding="utf-8")


class Bench:
    """The device and sizes of a check.

    Args:
        dataroot: a data set to take images from; empty for smooth noise.
        cpu: a rehearsal without a GPU, with tiny networks and images.
        out: folder for traces and images.
        limit: seconds that the section may take.
    """

    def __init__(self, dataroot: str, cpu: bool, out: Path, limit: float):
        self.dataroot = Path(dataroot) if dataroot else None
        self.cpu, self.out, self.deadline = cpu, out, time.monotonic() + limit
        self.device = torch.device("cpu") if cpu else torch.device("cuda", 0)
        self.size = 32 if cpu else 256
        self.steps = 2 if cpu else 50
        self.words = "--gpu_ids -1 --ngf 4 --ndf 4 --netF_nc 16 --num_patches 16" if cpu else "--gpu_ids 0"

    def side(self, words: str = "", name: str = "fast", search: bool = True) -> Side:
        """The step of a model with these options of train.py, with fresh weights; see `Side`."""
        return Side(name, TrainOptions().parse(f"{self.words} {words}".split()), search)

    def images(self, folder: str, count: int, size: int) -> Tensor:
        """(count, 3, size, size) in [-1, 1]: of the data set, else smooth noise."""
        if self.dataroot is None:
            generator = torch.Generator().manual_seed(len(folder))
            noise = torch.rand(count, 3, size // 8, size // 8, generator=generator) * 2 - 1
            return F.interpolate(noise, size=(size, size), mode="bicubic").clamp(-1, 1)
        files = list_images(self.dataroot / folder, count)
        arrays = [np.asarray(open_rgb(file).resize((size, size), Image.Resampling.BICUBIC)) for file in files]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous() / 127.5 - 1

    def batches(self, count: int, size: int | None = None, images: int = 1) -> list[dict[str, Tensor]]:
        """`count` batches of `images` pairs on the device, so that loading is not timed."""
        sets = {name: self.images(f"train{name}", count, size or self.size).to(self.device) for name in "AB"}

        def taken(pool: Tensor, first: int) -> Tensor:
            return pool[[(first + number) % len(pool) for number in range(images)]]

        return [{name: taken(pool, first) for name, pool in sets.items()} for first in range(count)]

    def time_training(self, side: Side, batches: list[dict]) -> dict:
        """Spread of ms per step, seconds of the first step (compiling, capturing), peak memory in GB."""

        def step(number: int) -> None:
            side.step(batches[number % len(batches)])

        if not self.cpu:
            torch.cuda.reset_peak_memory_stats()
        first = seconds(lambda: step(0), self.device)
        times = back_to_back(step, 1 if self.cpu else 10, self.steps, self.device)
        peak = 0.0 if self.cpu else torch.cuda.max_memory_allocated() / 1e9
        return {"ms": spread(times), "first_s": first, "peak_GB": peak}
