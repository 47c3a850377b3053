"""Compile the Triton kernels of the training step for GPUs that are not there, and check that they fit.

    python scripts/gpu/compile_kernels.py [--targets 80,86,89,90] [--kernels _global_states,_merge_splits]

The kernels and their variants are those that a step of the default training launches
on. The step runs on the CPU with tensors that have shapes and no numbers (`FakeTensorMode`), and its launches
are only noted, so this takes the compiler's time alone: minutes for all, kept in Triton's cache. Exit status
1 if a kernel does not compile or needs more shared memory than a program can have. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget

from models import create_model
from models.speed import qs_kernels, triton_support
from models.speed.triton_support import trials
from options.train_options import TrainOptions
from scripts.measuring import markdown_table

# Compute capability -> shared memory that a program can have, in KiB (CUDA C++ Programming Guide).
SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227}
TRAININGS = {
    f"{precision}, {mode}": f"--precision {option} --QS_mode {mode} --channels_last"
    for precision, option in {"bf16": "bf16", "float32": "fp32"}.items()
    for mode in ("global", "local")
}


class Launch(NamedTuple):
    """A launch of a kernel: its arguments, types in place of tensors, and its constants and options."""

    kernel: triton.JITFunction
    arguments: tuple
    options: dict[str, object]


class Outcome(NamedTuple):
    """What compiling made of a variant of a kernel: its shared memory in bytes, or why it does not work."""

    kernel: str
    shared: int
    problem: str | None


def launches(words: str, capability: int) -> list[Launch]:
    """The launches of one training step at 256 x 256 with the options `words`, on a GPU of `capability`."""
    found = []

    def note(kernel, *arguments, grid, warmup, **options) -> None:
        kinds = tuple(a.dtype if isinstance(a, Tensor) else a for a in arguments)
        found.append(Launch(kernel, kinds, options))

    def rank_globally(features: Tensor, input_precision: str | None) -> Tensor:
        with (
            patch.object(Tensor, "is_cuda", True),
            patch.object(qs_kernels, "on_device_of", lambda tensor: nullcontext()),
        ):
            return qs_kernels._global_op._init_fn(features, input_precision)

    with ExitStack() as stack:
        for patched in (
            patch.object(triton_support, "works", lambda device: True),
            patch.object(qs_kernels, "works", lambda device: True),
            patch.object(torch.cuda, "get_device_capability", lambda device: divmod(capability, 10)),
            patch.multiple(trials, passed=set(), failed=set()),
            patch.object(triton.JITFunction, "run", note),
            # With such tensors the operators would only say what shape they return.
            patch.object(torch.ops.qs_attn, "global_log_entropy", rank_globally),
            patch.object(torch.ops.qs_attn, "local_log_entropy", qs_kernels._local_op._init_fn),
        ):
            stack.enter_context(patched)
        model = create_model(TrainOptions().parse(f"--gpu_ids -1 {words}".split()))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        images = {domain: torch.zeros(1, 3, 256, 256) for domain in "AB"}
        model.set_input({**images, "A_paths": ["a"], "B_paths": ["b"]})
        model.optimize_parameters()
        if trials.failed:
            raise RuntimeError(f"not launched, since their trials failed: {', '.join(sorted(trials.failed))}")
    return found


class _Driver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> str:
        return f"sm_{self.capability}"  # compiled kernels are kept by device

    def get_current_stream(self, device: str) -> int:
        return 0


def compile_all(found: list[Launch], capability: int) -> list[Outcome]:
    """Compile each distinct variant among launches, for GPUs of this compute capability."""
    outcomes = {}
    with patch("triton.runtime.jit.driver", SimpleNamespace(active=_Driver(capability))):
        for kernel, arguments, options in found:
            try:
                made = kernel.warmup(*arguments, grid=(1,), **options)
            except Exception as error:  # a compiler may raise anything
                problem = f"{type(error).__name__}: {error}"
                outcomes[kernel.__name__, problem] = Outcome(kernel.__name__, 0, problem)
                continue
            shared, most = made.metadata.shared, 1024 * SHARED_MEMORY[capability]
            problem = f"{shared} bytes of shared memory, but there are {most}" if shared > most else None
            outcomes[made.hash] = Outcome(kernel.__name__, shared, problem)
    return list(outcomes.values())


def main(argv: list[str] | None = None) -> int:
    """Compile and print a table; exit status 1 if a kernel does not work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ",".join(map(str, SHARED_MEMORY))
    parser.add_argument("--targets", default=every, help=f"compute capabilities, of {every}")
    parser.add_argument("--kernels", help="some kernels only, by their names in models/speed")
    options = parser.parse_args(argv)
    targets = [int(target) for target in options.targets.split(",")]
    if unknown := set(targets) - set(SHARED_MEMORY):
        parser.error(f"the shared memory of {min(unknown)} is not known here; there are {every}")
    names = options.kernels.split(",") if options.kernels else None
    rows, problems = [], []
    for capability in targets:
        for training, words in TRAININGS.items():
            found = [
                launch
                for launch in launches(words, capability)
                if names is None or launch.kernel.__name__ in names
            ]
            outcomes = compile_all(found, capability)
            largest: dict[str, int] = {}
            for kernel, shared, problem in outcomes:
                largest[kernel] = max(largest.get(kernel, 0), shared)
                problems += [f"sm_{capability}, {training}: {kernel}: {problem}"] if problem else []
            ranked = sorted(largest.items(), key=lambda item: -item[1])[:2]
            needs = ", ".join(f"{kernel} {shared / 1024:.1f}" for kernel, shared in ranked)
            rows.append([f"sm_{capability}", SHARED_MEMORY[capability], training, len(outcomes), needs])
            print(f"sm_{capability}, {training}: {len(outcomes)} variants", file=sys.stderr, flush=True)
    print(markdown_table(["GPU", "KiB there", "training", "variants", "KiB needed, the two largest"], rows))
    print("\n".join(problems) if problems else "All compile and fit.")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
