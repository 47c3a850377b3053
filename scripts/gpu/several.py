"""The section of `scripts/gpu/check.py` that trains several models on one GPU at a time.

Each training is a process:

    python scripts/gpu/several.py [--cpu]    # prints "ready", waits for a line, prints images per second
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.gpu.bench import Bench, Report
from scripts.measuring import synchronise
from scripts.mps import PIPES, multi_process_service

STARTUP = 30  # seconds in which trainings become ready, once their kernels are compiled
SECONDS = 10  # of training that are counted
CHUNK = 20  # steps between looks at the clock, which wait for the device


def several(bench: Bench, report: Report) -> None:
    """Throughput of 1, 2 and 3 trainings at a time, in turns and side by side (NVIDIA's MPS)."""
    rows = report.data.setdefault("images per second", {})
    with multi_process_service(str(bench.device)) as service:
        ways = {"in turns": {PIPES: os.devnull}}  # no daemon is found there, not even the user's
        ways |= {"MPS": service.environment} if service.running else {}
        report.say(f"MPS {'is used' if service.running else 'is not used'}: {service.reason}.")
        for way, environment in ways.items():
            cells = []
            for count in (1, 2) if bench.cpu else (1, 2, 3):
                if time.monotonic() > bench.deadline - STARTUP - SECONDS:
                    report.data.setdefault("not run", []).append(f"{count}, {way}")
                    continue
                command = [sys.executable, __file__] + ["--cpu"] * bench.cpu
                rate = rows[f"{count}, {way}"] = throughput(command, count, environment)
                cells.append([count, f"{rate:.1f}", f"{rate / next(iter(rows.values())):.2f} x"])
            report.table([f"trainings, {way}", "images per second, all together", "against one"], cells)


def throughput(command: Sequence[str], count: int, environment: Mapping[str, str]) -> float:
    """Images per second of `count` processes that train at the same time, added up."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with contextlib.ExitStack() as stack:
        # Leaving ends the input of those that wait, and so these.
        trainings = [
            stack.enter_context(
                subprocess.Popen(
                    command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(count)
        ]
        for training in trainings:
            _line(training)
        for training in trainings:
            print("go", file=training.stdin, flush=True)
        return sum(float(_line(training)) for training in trainings)


def _line(training: subprocess.Popen) -> str:
    if line := training.stdout.readline():
        return line
    raise SystemExit(f"one of the trainings ended with status {training.wait()}: see log.txt")


def main() -> None:
    """One training, on images that are on the device already."""
    with contextlib.redirect_stdout(sys.stderr):
        bench = Bench("", "--cpu" in sys.argv, Path(), limit=0)
        side, batches = bench.side("--fast"), bench.batches(8)
        chunk = 1 if bench.cpu else CHUNK

        def train() -> None:
            for number in range(chunk):
                side.step(batches[number % len(batches)])
            synchronise(bench.device)

        train()
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    begun, steps, passed = time.perf_counter(), 0, 0.0
    while passed < (1 if bench.cpu else SECONDS):
        train()
        steps, passed = steps + chunk, time.perf_counter() - begun
    print(steps * side.opt.batch_size / passed, flush=True)


if __name__ == "__main__":
    main()
