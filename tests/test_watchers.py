"""TensorBoard and Weights & Biases: what they show, resumed without repeats, and that they stop nothing."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from training_process import make_images, words
from visdom_server import wait_until

import train
from options.train_options import TrainOptions
from util.watch.background import BackgroundCalls
from util.watch.loss_log import LossRecord
from util.watch.monitor import Monitor
from util.watch.tensorboard_writer import TensorBoardWriter
from util.watch.wandb_run import IDENTITY_FILE, WandbRun

IMAGE = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
OPTIONS = {
    "lr": 2e-4,
    "model": "cut",
    "nce_layers": [0, 4],
    "no_flip": False,
    "max_dataset_size": float("inf"),
}


def record(images: int, **losses: float) -> LossRecord:
    """After so many images of an epoch of 1000."""
    return LossRecord(1, images, images, images / 1000, losses, 0.1, 0.0, lr=2e-4)


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> EventAccumulator:
        return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()

    return read


@pytest.fixture
def offline(monkeypatch):
    """wandb without a server; what it would send is read from its files."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")


def sent(folder: Path) -> list[bytes]:
    """The transaction logs of wandb's offline runs in a run's folder, oldest first.

    wandb's own process writes them, and is not done when `finish` returns.
    """
    logs = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    wait_until(lambda: all(b"loss/G" in path.read_bytes() for path in logs))
    return [path.read_bytes() for path in logs]


def curve(shown, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in shown.Scalars(tag)]


# The thread


def test_calls_are_made_in_order_by_another_thread():
    made, calls = [], BackgroundCalls("test")
    for number in range(50):
        calls.put(lambda number=number: made.append((number, threading.current_thread().name)))
    calls.close(10)
    assert made == [(number, "test") for number in range(50)]


def test_a_blocked_call_holds_nobody_up_and_memory_is_bounded():
    go, made, calls = threading.Event(), [], BackgroundCalls("test", most_waiting=3)
    started = threading.Event()
    calls.put(lambda: (started.set(), go.wait()))
    started.wait(10)
    for number in range(3):
        calls.put(lambda number=number: made.append(number))
    with pytest.raises(TimeoutError, match="3 updates wait to be written, so some are left out"):
        calls.put(lambda: made.append("too many"))
    with pytest.raises(TimeoutError, match="not written within 0.05 s"):
        calls.close(0.05)
    go.set()
    calls.close(10)
    assert made == [0, 1, 2]


def test_a_failure_is_raised_by_the_next_call_and_ends_the_thread():
    calls = BackgroundCalls("test")
    calls.put(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        calls.close(10)
    with pytest.raises(ZeroDivisionError):
        calls.put(lambda: None)


# TensorBoard


def test_tensorboard_shows_curves_images_and_options(tensorboard, tmp_path):
    writer = TensorBoardWriter(tmp_path, OPTIONS)
    writer.losses(record(100, G=5.0, NCE=4.0))
    writer.images(1, {"real_A": IMAGE})
    writer.losses(LossRecord(1, 200, 200, 0.2, {"G": 3.0, "NCE": None}, 0.1, 0.0, lr=1e-4))
    writer.close()
    shown = tensorboard(tmp_path)
    assert curve(shown, "loss/G") == [(100, 5.0), (200, 3.0)] and curve(shown, "loss/NCE") == [(100, 4.0)]
    assert curve(shown, "training/learning_rate") == [(100, np.float32(2e-4)), (200, np.float32(1e-4))]
    (image,) = shown.Images("real_A")
    assert (image.step, image.height, image.width) == (100, 8, 12)
    start = shown.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"nce_layers" in start and b"0,4" in start and b"cut" in start and b"inf" in start
    assert len(list(tmp_path.iterdir())) == 1  # one run of TensorBoard, the options in it


def test_tensorboard_continues_a_resumed_run_without_points_twice(tensorboard, tmp_path):
    first = TensorBoardWriter(tmp_path, OPTIONS)
    for images, value in [(100, 5.0), (200, 4.0), (300, 9.0)]:  # the checkpoint is after 200
        first.losses(record(images, G=value))
        first.images(1, {"fake_B": IMAGE})
    first.close()
    time.sleep(1.1)  # event files are ordered by the second in their names
    second = TensorBoardWriter(tmp_path, OPTIONS)
    second.resume([record(100, G=5.0), record(200, G=4.0)])
    second.losses(record(300, G=3.0))
    second.images(1, {"fake_B": IMAGE})
    second.close()
    shown = tensorboard(tmp_path)
    assert curve(shown, "loss/G") == [(100, 5.0), (200, 4.0), (300, 3.0)]
    assert [image.step for image in shown.Images("fake_B")] == [100, 200, 300]


def test_tensorboard_drops_an_overwritten_run(tensorboard, tmp_path):
    for value in (1.0, 2.0):
        writer = TensorBoardWriter(tmp_path, OPTIONS)
        writer.losses(record(100, G=value))
        if value == 1.0:
            writer.losses(record(200, G=value))
        writer.close()
        time.sleep(1.1)
    assert curve(tensorboard(tmp_path), "loss/G") == [(100, 2.0)]


def test_a_disk_that_refuses_tensorboard_costs_one_warning(tensorboard, tmp_path):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    writer = TensorBoardWriter(tmp_path / "tensorboard", OPTIONS)
    monitor = Monitor(tmp_path, [writer])
    with pytest.warns(RuntimeWarning, match="TensorBoard: .*training continues") as caught:
        monitor.losses(record(100, G=1.0))
        writer._calls._thread.join(10)
        monitor.losses(record(200, G=1.0))
        monitor.images(1, {"fake_B": IMAGE}, save=True)
        monitor.close()
    assert len(caught) == 1 and len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


# Weights & Biases


def test_wandb_offline_holds_curves_images_and_options(offline, tmp_path):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run = WandbRun(tmp_path, "horses", "my project", OPTIONS)
    run.losses(record(100, G=5.25))
    run.images(3, {"fake_B": IMAGE})
    run.losses(record(200, G=4.125))
    run.close()
    (log,) = sent(tmp_path)
    for part in (b"loss/G", b"5.25", b"4.125", b"horses", b"my project", b"nce_layers", b"epoch 3"):
        assert part in log, part
    assert len(list(tmp_path.rglob("fake_B_*.png"))) == 1
    assert json.loads((tmp_path / IDENTITY_FILE).read_text())["images"] == 200
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_wandb_continues_the_run_and_sends_no_step_twice(offline, tmp_path):
    first = WandbRun(tmp_path, "run", "project", OPTIONS)
    for images, value in [(100, 5.25), (200, 4.25), (300, 3.25)]:  # the checkpoint is after 200
        first.losses(record(images, G=value))
    first.close()
    identity = json.loads((tmp_path / IDENTITY_FILE).read_text())["id"]
    second = WandbRun(tmp_path, "run", "project", OPTIONS)
    second.resume([record(100, G=5.25), record(200, G=4.25)])
    second.losses(record(300, G=3.25))  # a resume repeats it exactly
    second.losses(record(400, G=2.25))
    second.close()
    logs = sent(tmp_path)
    assert len(logs) == 2 and all(identity.encode() in log for log in logs)
    assert b"3.25" in logs[0] and b"3.25" not in logs[1] and b"2.25" in logs[1]
    third = WandbRun(tmp_path, "run", "project", OPTIONS)  # started afresh: another run
    third.losses(record(100, G=1.0))
    third.close()
    assert json.loads((tmp_path / IDENTITY_FILE).read_text())["id"] != identity


def test_wandb_that_cannot_begin_costs_one_warning(offline, tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.CommError("no network")

    monkeypatch.setattr(wandb, "init", refuse)
    run = WandbRun(tmp_path, "run", "project", OPTIONS)
    monitor = Monitor(tmp_path, [run])
    with pytest.warns(RuntimeWarning, match="Weights & Biases: no network; training continues") as caught:
        monitor.losses(record(100, G=1.0))
        run._calls._thread.join(10)
        monitor.losses(record(200, G=1.0))
        monitor.close()
    assert len(caught) == 1


# Options and whole trainings


@pytest.mark.parametrize("flag, package", [("--tensorboard", "tensorboard"), ("--use_wandb", "wandb")])
def test_a_missing_package_is_named_with_what_to_install(flag, package, monkeypatch, capsys):
    for name in [name for name in sys.modules if re.match(rf"(torch\.utils\.)?{package}(\.|$)", name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it now fails
    with pytest.raises(SystemExit) as status:
        TrainOptions().parse([flag])
    assert status.value.code == 2
    told = f"{flag} needs the package {package}, .*pip install -r requirements-watch.txt, or leave {flag} out"
    assert re.search(told, capsys.readouterr().err)


def test_wandb_without_a_key_is_refused_before_training(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    # In a process of its own: wandb keeps the settings it was first asked for.
    code = "from options.train_options import TrainOptions; TrainOptions().parse(['--use_wandb'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env={"PATH": "/usr/bin", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2 and "run `wandb login` first, or set WANDB_MODE=offline" in done.stderr


def test_a_project_without_wandb_is_a_mistake(capsys):
    with pytest.raises(SystemExit):
        TrainOptions().parse(["--wandb_project_name", "mine"])
    assert "--wandb_project_name has no effect with --use_wandb False" in capsys.readouterr().err


def test_a_training_with_all_watchers_computes_the_same_and_resumes(tensorboard, offline, tmp_path):
    data = make_images(tmp_path / "data")
    finals = {}
    for folder, more in {"plain": "", "watched": "--tensorboard --use_wandb --display_freq 1"}.items():
        line = words(data, tmp_path / folder, "--n_epochs 1 --n_epochs_decay 1", more)
        assert train.main(line) == 0
        run = tmp_path / folder / "run"
        assert train.main([*line, "--continue_train", "--n_epochs_decay", "2"]) == 0
        finals[folder] = torch.load(run / "latest_net_G.pth", weights_only=True)
    for name, value in finals["plain"].items():
        assert torch.equal(value, finals["watched"][name])
    shown = tensorboard(run / "tensorboard")
    assert [step for step, _ in curve(shown, "loss/G")] == list(range(1, 16))  # 3 epochs of 5 images
    steps = defaultdict(int)
    for image in shown.Images("fake_B"):
        steps[image.step] += 1
    assert set(steps) == set(range(1, 16))
    assert len(sent(run)) == 2
