"""Measuring time and memory: of a call, by stages, at the peak, and on what machine."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def seconds(call: Callable[[], None], device: torch.device) -> float:
    """How long a call takes, with all that it starts on the device."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def spread(times: list[float], unit: float = 1e3) -> dict[str, float]:
    """Median and quartiles, in milliseconds unless another unit a second is given."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"median": unit * statistics.median(times), "low": unit * low, "high": unit * high}


class StageClock:
    """Splits the time of steps into stages; what a stage spends in another one counts for the inner one."""

    def __init__(self, device: torch.device):
        self.device = device
        self.totals: dict[str, float] = defaultdict(float)
        self.open = ["other"]
        self.last = time.perf_counter()

    def switch(self) -> None:
        """The time since the last change belongs to the innermost open stage."""
        synchronise(self.device)
        now = time.perf_counter()
        self.totals[self.open[-1]] += now - self.last
        self.last = now

    def timed(self, stage: str, call: Callable) -> Callable:
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
    """Bytes: on CUDA the most that tensors held, else the most that this process held of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if (
        status.is_file()
    ):  # getrusage counts what the process held before it became this program, as a fork of a large one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def versions_and_hardware(device: torch.device) -> dict[str, object]:
    """What a number without is worth nothing."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "gpu_memory_GB": torch.cuda.get_device_properties(device).total_memory / 1e9,
        }
    return facts
