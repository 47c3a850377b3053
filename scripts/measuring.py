"""Time, memory and Markdown tables, for `scripts/benchmark.py` and the GPU check."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, with all the work that it queues on the device."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def back_to_back(
    step: Callable[[int], object], warm_up: int, steps: int, device: torch.device
) -> list[float]:
    """Seconds of each of `steps` calls after `warm_up` untimed ones; on CUDA without waiting between them."""
    for number in range(warm_up):
        step(number)
    if device.type != "cuda":
        return [seconds(lambda number=number: step(number), device) for number in range(steps)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    marks[0].record()
    for number in range(steps):
        step(number)
        marks[number + 1].record()
    synchronise(device)
    return [begin.elapsed_time(end) / 1e3 for begin, end in zip(marks[:-1], marks[1:], strict=True)]


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds of times in seconds."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {"median": 1e3 * statistics.median(times), "low": 1e3 * low, "high": 1e3 * high}


def format_spread(times: dict[str, float] | None) -> str:
    """A `spread` as 6.8 (6.76-6.88), or - for None."""
    return "-" if times is None else f"{times['median']:.4g} ({times['low']:.4g}-{times['high']:.4g})"


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, without a line end after its last row."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


class StageClock:
    """Splits the time of steps into stages; time in a nested stage counts for the inner one only."""

    def __init__(self, device: torch.device):
        self.device = device
        self.totals: dict[str, float] = defaultdict(float)
        self.open = ["other"]
        self.last = time.perf_counter()

    def switch(self) -> None:
        """Add the time since the last switch to the innermost open stage."""
        synchronise(self.device)
        now = time.perf_counter()
        self.totals[self.open[-1]] += now - self.last
        self.last = now

    def timed(self, stage: str, call: Callable) -> Callable:
        """`call`, its time counted for `stage`."""

        def wrapped(*args, **kwargs):
            self.switch()
            self.open.append(stage)
            try:
                return call(*args, **kwargs)
            finally:
                self.switch()
                self.open.pop()

        return wrapped


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on CUDA, else of this process in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would include the peak of the process that this one was forked from.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def release_memory() -> None:
    """Return the memory of deleted models to the device, so that the next measurement starts without it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
