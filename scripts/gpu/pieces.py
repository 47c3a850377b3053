"""The section of `scripts/gpu/check.py` that times a step captured in pieces: two processes share one GPU.

NCCL refuses that, so they exchange gradients over gloo, through the host. The section compares a step in
pieces with a step in one graph plus its exchange; how long an exchange takes between GPUs it cannot show.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

import torch.distributed as dist

from scripts.benchmark import Side
from scripts.gpu.bench import Bench, Report
from scripts.measuring import back_to_back, release_memory, spread
from util import distributed

PIECES = "--fast --experimental graph_pieces"


def pieces(bench: Bench, report: Report) -> None:
    """A step in pieces against an eager one, one in a single graph, and the exchange of gradients."""
    result = bench.out / "pieces.json"
    words = "-m torch.distributed.run --standalone --nproc_per_node=2 -m scripts.gpu.pieces".split()
    done = subprocess.run([sys.executable, *words, str(result), *["--cpu"] * bench.cpu])
    if done.returncode:
        raise SystemExit(f"the two processes ended with status {done.returncode}")
    report.data["ms"] = rows = json.loads(result.read_text(encoding="utf-8"))
    head = ["two processes on one GPU", "ms per step", "quartiles"]
    report.table(
        head,
        [[name, f"{ms['median']:.2f}", f"{ms['low']:.2f} to {ms['high']:.2f}"] for name, ms in rows.items()],
    )
    ms = {name: times["median"] for name, times in rows.items()}
    alone = ms["alone: pieces, nothing exchanged"] - ms["alone: one graph"]
    both = ms["both: pieces"] - ms["both: one graph, nothing exchanged"] - ms["both: the exchange"]
    report.say(
        f"The cuts, and copying gradients to and from the buffer exchanged, cost {alone:.2f} ms in a "
        f"process alone (aim: at most 1.5); with both at work, a step in pieces takes {both:.2f} ms more "
        "than one graph and the exchange."
    )


def measure(bench: Bench) -> dict[str, dict]:
    """In each of the two processes: the spread in ms of each kind of step, by name."""
    batches, rows = bench.batches(8), {}
    one_process = mock.patch.object(distributed, "world_size", lambda: 1)
    no_exchange = mock.patch.object(dist, "all_reduce", lambda *args, **kwargs: None)

    def timed(name: str, words: str, condition: AbstractContextManager) -> Side:
        side = bench.side(words)
        with condition:
            rows[name] = bench.time_training(side, batches)["ms"]
        if side.opt.cuda_graph and not side.model.accelerator.recordings:
            raise SystemExit(f"{name}: the step was not captured")
        return side

    if dist.get_rank() == 0:  # while the other process waits
        timed("alone: one graph", PIECES, one_process)
        timed("alone: pieces, nothing exchanged", PIECES, no_exchange)
    release_memory()
    dist.barrier()
    timed("both: one graph, nothing exchanged", PIECES, one_process)
    dist.barrier()
    timed("both: pieces", PIECES, nullcontext())
    dist.barrier()
    model = timed("both: eager", "--fast --cuda_graph false", nullcontext()).model

    def exchange(number: int) -> None:
        for names in model.groups.values():
            distributed.average_gradients([p for name in names for p in model.networks[name].parameters()])

    rows["both: the exchange"] = spread(back_to_back(exchange, 1, bench.steps, bench.device))
    dist.barrier()
    return rows


def main() -> None:
    os.environ["LOCAL_RANK"] = "0"  # both processes take the first GPU
    dist.init_process_group("gloo")
    rows = measure(Bench("", "--cpu" in sys.argv, Path(), limit=0))
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(rows), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
