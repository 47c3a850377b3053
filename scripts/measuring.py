"""What times a training step: the two sides of a comparison, clocks, peak memory, Markdown tables."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models import create_model
from models.textbook import TextbookStep

# The speed options of the plain side.
PLAIN = {"precision": "fp32", "channels_last": False, "cuda_graph": False, "fast": False}


class Side:
    """One way to run the step: "plain", the textbook step without speed options, or "fast", that of `opt`.

    On CUDA the plain side has TF32 convolutions and cuDNN's search, as the released code sets them.
    """

    def __init__(self, name: str, opt: Namespace):
        self.name = name
        self.opt = opt if name == "fast" else Namespace(**{**vars(opt), **PLAIN})
        torch.manual_seed(opt.seed)
        self.model = create_model(self.opt)
        self.runner = self.model if name == "fast" else TextbookStep(self.model)

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
            torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, with all the work that it queues on the device."""
    _synchronise(device)
    start = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def back_to_back(step: Callable[[], object], warm_up: int, steps: int, device: torch.device) -> list[float]:
    """Seconds of each of `steps` calls after `warm_up` untimed ones; on CUDA without waiting between them."""
    for _ in range(warm_up):
        step()
    if device.type != "cuda":
        return [seconds(step, device) for _ in range(steps)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    _synchronise(device)
    return [begin.elapsed_time(end) / 1e3 for begin, end in zip(marks[:-1], marks[1:], strict=True)]


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds of times in seconds."""
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return {"median": 1e3 * statistics.median(times), "low": 1e3 * low, "high": 1e3 * high}


def format_spread(times: dict[str, float] | None) -> str:
    """A `spread` as 6.8 (6.76-6.88), or - for None."""
    return "-" if times is None else f"{times['median']:.4g} ({times['low']:.4g}-{times['high']:.4g})"


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, without a line end after its last row."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes: of tensors on CUDA, else of this process on Linux; None elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # getrusage would include the peak of the parent process
    lines = status.read_text().splitlines() if status.is_file() else []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return peaks[0] if peaks else None
