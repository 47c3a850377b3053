"""The memory that a translation on the CPU can get: Linux kills a process that takes more."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # the limit of a container


def free_memory() -> float:
    """Bytes that this process can still get; infinity where the system does not say."""
    free = math.inf
    with contextlib.suppress(OSError, ValueError, KeyError):
        free = 1024 * _numbers(Path("/proc/meminfo"))["MemAvailable:"]
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit = int(Path(CGROUP, "memory.max").read_text())
        free = min(free, limit - _numbers(Path(CGROUP, "memory.stat"))["anon"])
    return free


def _numbers(path: Path) -> dict[str, int]:
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if (words := line.split())}
