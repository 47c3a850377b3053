"""The CPU threads of a process: their number, and no spinning while other programs need the cores.

On Linux, PyTorch's operations run on threads of GNU's OpenMP library, libgomp. Threads that wait for each
other spin for some milliseconds. That is fast while each has a core of its own. Where other programs run, a
thread spins while the thread it waits for has no core, and a step takes 10 to 40 times as long. libgomp
spins only briefly while it manages more threads than the process has cores, which it checks whenever a
thread waits. `shared_cpu` uses this: while threads of the process wait for cores, it keeps a second, idle
team of threads.

Neither the number of threads nor any result depends on the load. Measurements: docs/performance.md.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from util.console import say

# With one of these set, the user has chosen the number of threads, or how they wait.
COUNT_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

INTERVAL = 0.25  # seconds between two readings of the waiting times
BUSY = 0.3  # seconds of waiting for a core, per second, summed over threads: above it spinning does not pay
FREE = 0.1  # below it, for CALM_INTERVALS, spinning pays again
CALM_INTERVALS = 4
TOLD_AFTER = 8  # busy intervals in a row; shorter ones may come from the program's own threads, as at a start

_watching = threading.Lock()


@contextmanager
def shared_cpu(device: torch.device) -> Iterator[None]:
    """Choose the number of threads, and inside the block avoid spinning while other programs need the cores.

    Does nothing on other devices than the CPU, or against OpenMP settings of the user. Blocks may be nested.
    """
    if device.type != "cpu":
        yield
        return
    choose_threads()
    library = None if any(name in os.environ for name in WAIT_SETTINGS) else find_libgomp()
    if torch.get_num_threads() == 1 or library is None or not _watching.acquire(blocking=False):
        yield
        return
    stop = threading.Event()
    watch = threading.Thread(target=avoid_spinning, args=(IdleTeam(library), stop), daemon=True)
    watch.start()
    try:
        yield
    finally:
        stop.set()
        watch.join()
        _watching.release()


def choose_threads() -> None:
    """Lower torch's number of threads to this process's part of the cores that its control group may use."""
    if any(name in os.environ for name in COUNT_SETTINGS):
        return
    default, cores = torch.get_num_threads(), cpu_quota() or os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = max(1, int(cores) // processes)
    if threads < default:
        by = f"{cores:g} cores for {processes} process" + "es" * (processes > 1)
        say(f"Using {threads} CPU threads instead of {default}: {by}. OMP_NUM_THREADS sets another number.")
        torch.set_num_threads(threads)


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float | None:
    """The number of cores that the process's control groups (version 1 or 2) allow; None: no limit."""
    quotas = []
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        folder = base / path.lstrip("/")
        for place in (folder, *folder.parents):  # a group has no more than those that it is in
            quota, period = _quota_and_period(place)
            if quota > 0:
                quotas.append(quota / period)
            if place == base:
                break
    return min(quotas, default=None)


def _quota_and_period(folder: Path) -> tuple[int, int]:
    """Microseconds of cores per period of microseconds; a quota of -1 where there is none."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return (-1 if quota == "max" else int(quota)), int(period)
    except OSError:
        pass
    try:
        files = (folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
        quota, period = (int(file.read_text()) for file in files)
        return quota, period
    except OSError:
        return -1, 1


def find_libgomp() -> ctypes.CDLL | None:
    """The libgomp that torch has loaded; None with another OpenMP library, as on macOS or from conda."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.is_file() else []
    paths = {line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line}
    of_torch = [path for path in sorted(paths) if "torch" in path]
    return ctypes.CDLL((of_torch or sorted(paths))[0]) if paths else None


class IdleTeam:
    """A team of OpenMP threads that does nothing; with torch's own team, more threads than cores."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        self.library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self.library.GOMP_parallel.restype = None
        self.owner: threading.Thread | None = None

    def form(self) -> None:
        """Start the team, unless it is there."""
        if self.owner is None:
            ready, self._released = threading.Event(), threading.Event()
            self.owner = threading.Thread(target=self._own, args=(ready, self._released), daemon=True)
            self.owner.start()
            ready.wait()

    def disband(self) -> None:
        """End the team, if it is there."""
        if self.owner is not None:
            self._released.set()
            self.owner.join()  # a team ends with the thread that formed it
            self.owner = None

    def _own(self, ready: threading.Event, released: threading.Event) -> None:
        size = max(2, self.library.omp_get_num_procs() - torch.get_num_threads() + 2)
        nothing = ctypes.cast(self.library.omp_get_thread_num, ctypes.c_void_p)
        self.library.GOMP_parallel(nothing, None, size, 0)
        ready.set()
        released.wait()


def avoid_spinning(team: IdleTeam, stop: threading.Event, waited: Callable[[], float] | None = None) -> None:
    """Until `stop`, keep `team` while threads of this process wait for cores.

    Args:
        waited: seconds that they have waited so far, over all threads; default: as the kernel counts them.
    """
    waited = waited or seconds_waited
    busy, calm, said = 0, 0, False
    before, at = waited(), time.perf_counter()
    while not stop.wait(INTERVAL):
        now, then = waited(), time.perf_counter()
        share = (now - before) / (then - at)
        before, at = now, then
        if share > BUSY:
            busy, calm = busy + 1, 0
            team.form()
            if busy == TOLD_AFTER and not said:
                say(
                    "note: this machine's cores are busy with further threads; steps take longer.",
                    file=sys.stderr,
                )
                said = True
        else:
            busy, calm = 0, calm + 1 if share < FREE else 0
            if calm >= CALM_INTERVALS:
                team.disband()
    team.disband()


def seconds_waited() -> float:
    """Seconds for which threads of this process were ready to run and had no core, summed over threads.

    From Linux's scheduler statistics; 0 where the kernel keeps none. Threads that ended are not counted.
    """
    total = 0
    for folder in Path("/proc/self/task").glob("*"):
        try:
            total += int((folder / "schedstat").read_text().split()[1])
        except (OSError, IndexError):  # the thread has just ended; no statistics
            continue
    return total / 1e9
