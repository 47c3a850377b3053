"""Trainings in processes of their own, to kill, stop and watch, at a fraction of the cost of starting Python.

A server process imports everything once and forks each training: a real process with its own signals, locks
and loader workers, leader of its own process group.
"""

import json
import multiprocessing
import os
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

TINY = (
    "--gpu_ids -1 --display_id 0 --no_html --ngf 2 --ndf 2 --netG=resnet_4blocks "
    "--load_size 34 --crop_size 32 "
    "--print_freq 1 --deterministic --num_threads 0 --name run"
).split()
MODELS = {
    "cut": "--model cut --netF_nc 4 --num_patches 8 --nce_layers 0,4,12",
    "cycle_gan": "--model cycle_gan",
    "asgit": "--model asgit",
    "dcl": "--model dcl --netF_nc 4 --num_patches 8 --nce_layers 0,4,12",
    "qs_multi": "--model qs_multi --netF_nc 4 --num_patches 8 --nce_layers 0,4,12",
    "stargan": "--model stargan --batch_size 1 --g_repeat_num 1 --d_repeat_num 3 --n_critic 3",
    "munit": "--model munit --style_dim 3 --mlp_dim 4 --n_res 1 --n_layer 2 --num_scales 2",
    "qs_dual": "--model qs_dual --netF_nc 4 --num_patches 8 --nce_layers 4,8,12 --QS_mode local_global",
}
PATIENCE = 120  # seconds after which something counts as hung, on a busy machine too


def make_images(root: Path, count_A: int = 5, count_B: int = 4) -> Path:
    """A data set of noise."""
    rng = np.random.default_rng(0)
    for folder, count in {"trainA": count_A, "trainB": count_B}.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (34, 34, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root


def words(dataroot: Path, checkpoints: Path, *more: str, model: str = "cut") -> list[str]:
    """The command line of a tiny training of one of MODELS; `more` is split at spaces."""
    given = [word for text in (MODELS[model], *more) for word in text.split()]
    tiny = [
        word for word in TINY if model not in ("stargan", "munit") or "net" not in word
    ]  # which has its own networks
    return ["--dataroot", str(dataroot), "--checkpoints_dir", str(checkpoints), *tiny, *given]


def in_float64() -> None:
    """As `change`: train in float64, in which rounding stays far below what a wrong gradient would be."""
    from models.base_model import BaseModel

    torch.set_default_dtype(torch.float64)
    take_batch = BaseModel.set_input

    def set_input(model, batch):
        floats = {k: v.double() for k, v in batch.items() if torch.is_tensor(v) and v.is_floating_point()}
        take_batch(model, {**batch, **floats})

    BaseModel.set_input = set_input


class TrainingProcess:
    """A running `train.main(argv)`, after `change()`, which arranges what goes wrong in it."""

    def __init__(self, argv: list[str], log: Path, env: dict | None = None, change: Callable | None = None):
        self.log = log
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", "train", "training_process"])
        self.process = context.Process(target=_train, args=(argv, str(log), env or {}, change))
        self.process.start()
        self.pid = self.process.pid

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit status; minus the signal that killed it."""
        self.process.join(seconds)
        status = self.process.exitcode
        self.kill()
        assert status is not None, f"the training hung; it said:\n{self.output()}"
        return status

    def wait_until(self, condition: Callable[[], object], pause: float = 0.002) -> None:
        """Wait for a condition while the training runs."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.is_alive() and time.monotonic() < end, self.output()
            time.sleep(pause)

    def kill(self) -> None:
        """SIGKILL, to it alone and not to its workers."""
        self.process.kill()
        self.process.join()

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _train(argv: list[str], log: str, env: dict[str, str], change: Callable | None) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (
        open(fd, "w", buffering=1, closefd=False, errors="backslashreplace") for fd in (1, 2)
    )
    os.environ.update(env)
    torch.set_num_threads(1)
    import train

    if change is not None:
        change()
    sys.exit(train.main(argv))


def ranks_env(count: int) -> list[dict[str, str]]:
    """What torchrun tells each of `count` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    size = {"WORLD_SIZE": str(count)}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **size, **place} for rank in range(count)]


def state_of(checkpoints: Path) -> dict:
    """The saved state of the run."""
    return torch.load(checkpoints / "run" / "latest_state.pth", weights_only=True)


def steps_saved(checkpoints: Path) -> int:
    """Steps in the saved state, 0 where there is none yet."""
    saved = (checkpoints / "run" / "latest_state.pth").exists()
    return state_of(checkpoints)["progress"]["steps"] if saved else 0


def log_records(checkpoints: Path) -> list[dict]:
    """What was logged of the losses at each step; nothing where the log is not there yet."""
    log = checkpoints / "run" / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [record for record in records if record["type"] == "losses"]


def losses(checkpoints: Path) -> list[dict[str, float]]:
    """The losses logged at each step."""
    return [record["losses"] for record in log_records(checkpoints)]


def write_run_options(folder: Path, line: str) -> Namespace:
    """Save the options of a training with this command line in a run's folder, and return them."""
    from options.train_options import TrainOptions
    from util.run.saved_options import write_options

    options = TrainOptions()
    opt = options.parse(line.split())
    write_options(folder, opt, options.parser.defaults)
    return opt


def assert_same(a: object, b: object) -> None:
    """Equal bit for bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def assert_same_run(a: Path, b: Path) -> None:
    """Two runs ended with the same weights, moments, schedules and random states, and equal logged losses."""
    first, second = state_of(a), state_of(b)
    for part in ("progress", "model", "random"):
        assert_same(first[part], second[part])
    assert losses(a) == losses(b)
