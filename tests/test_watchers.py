"""visdom, TensorBoard and Weights & Biases: what they show, without repeats, and that they stop nothing."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from training_process import make_images, words
from visdom_server import Server, visdom_server, wait_until

import train
from options.train_options import TrainOptions
from util.images import image_grid
from util.watch import monitor as monitoring
from util.watch.loss_log import LossRecord
from util.watch.monitor import Monitor, create_monitor

LOCAL = "http://127.0.0.1"
visdom_warns = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning")
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


def tensorboard_writer(folder: Path):
    from util.watch.tensorboard_writer import TensorBoardWriter

    return TensorBoardWriter(folder, OPTIONS)


def curve(shown, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in shown.Scalars(tag)]


# visdom


@pytest.fixture
def impatient(monkeypatch):
    """No pauses between messages, nor after a failure."""
    pytest.importorskip("visdom")
    from util.watch import visdom_client

    monkeypatch.setattr(visdom_client, "REST", 0.0)
    monkeypatch.setattr(monitoring, "FIRST_REST", 0.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("visdom")
    with visdom_server(tmp_path_factory.mktemp("visdom")) as server:
        yield server


def window(server: Server, number: int, env: str) -> dict | None:
    """What the server holds of a window, or None where it has none."""
    import requests

    with requests.Session() as session:
        session.trust_env = False  # a test sets a proxy
        data = json.dumps({"win": str(number), "eid": env})
        answer = session.post(f"{LOCAL}:{server.port}/win_data", data=data, timeout=10)
    return json.loads(answer.text) if answer.ok and answer.text.startswith("{") else None


def visdom_client(server: Server, env: str, **settings):
    from util.watch.visdom_client import VisdomClient

    return VisdomClient("run", LOCAL, server.port, env, **settings)


def show(watcher, *calls: tuple) -> None:
    """Make calls as a monitor would, from the beginning to the end."""
    for name, *arguments in (("begin", []), *calls, ("close",)):
        getattr(watcher, name)(*arguments)


@visdom_warns
def test_visdom_holds_curves_with_gaps_where_losses_are_not_finite(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # not asked for a local server
    monkeypatch.delenv("no_proxy", raising=False)
    points = [record(500, G=0.5, NCE=4.0), record(750, G=math.nan, NCE=3.5), record(1000, G=0.25, NCE=3.0)]
    show(visdom_client(server, "curves"), *(("losses", point) for point in points))
    shown = window(server, 1, "curves")
    assert shown["title"] == "run: losses"
    assert [(line["name"], line["x"], line["y"]) for line in shown["content"]["data"]] == [
        ("G", [0.5, 0.75, 1.0], [0.5, None, 0.25]),
        ("NCE", [0.5, 0.75, 1.0], [4.0, 3.5, 3.0]),
    ]


@visdom_warns
def test_visdom_shows_images_in_one_window_or_each_in_its_own(server):
    images = {label: np.full((8, 12, 3), value, np.uint8) for label, value in (("a", 9), ("b", 50), ("c", 0))}
    show(visdom_client(server, "grid", display_id=20, ncols=2), ("images", 7, 100, images))
    shown = window(server, 21, "grid")
    assert shown["content"]["caption"] == "a | b | c" and shown["title"] == "run: images of epoch 7"
    kind, data = shown["content"]["src"].split(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), image_grid(list(images.values()), 2)
    )
    show(visdom_client(server, "single", display_id=20, ncols=0), ("images", 1, 100, images))
    assert window(server, 23, "single")["content"]["caption"] == "c"


@visdom_warns
def test_no_server_costs_one_warning_and_a_server_that_comes_back_gets_the_whole_curve(tmp_path, impatient):
    with visdom_server(tmp_path / "first") as server:
        monitor = Monitor(tmp_path, [visdom_client(server, "back")])
        monitor.losses(record(100, G=1.0))
        wait_until(lambda: window(server, 1, "back") is not None)
        server.kill()
    with pytest.warns(RuntimeWarning, match="visdom: .* cannot be reached .*--display_id 0") as caught:
        monitor.losses(record(200, G=2.0))
        wait_until(lambda: monitor.watchers[0].problem)
        for images in range(300, 1000, 100):
            monitor.losses(record(images, G=3.0))
            monitor.images(1, images, {"fake_B": IMAGE}, save=False)
    assert len(caught) == 1
    with visdom_server(tmp_path / "second", server.port) as server:
        monitor.losses(record(1000, G=4.0))
        wait_until(lambda: window(server, 1, "back") is not None)
        assert window(server, 1, "back")["content"]["data"][0]["y"] == [1.0, 2.0, *[3.0] * 7, 4.0]
        monitor.close()


@visdom_warns
def test_a_server_that_never_answers_cannot_hold_up_the_end(tmp_path):
    pytest.importorskip("visdom")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monitor = Monitor(tmp_path, [visdom_client(SimpleNamespace(port=silent.getsockname()[1]), "silent")])
        monitor.losses(record(100, G=1.0))
        monitor.watchers[0].close(timeout=0.1)
        assert "not shown within 0.1 s" in monitor.watchers[0].problem


def test_visdom_not_installed_costs_one_warning(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "util.watch.visdom_client", raising=False)
    monkeypatch.setitem(sys.modules, "visdom", None)  # importing it now fails
    opt = Namespace(no_html=True, display_id=None, tensorboard=False, use_wandb=False)
    with pytest.warns(RuntimeWarning, match="visdom: it cannot be imported"):
        assert create_monitor(opt, tmp_path, epoch_steps=1).watchers == []


# TensorBoard


def test_tensorboard_shows_curves_images_and_options(tensorboard, tmp_path):
    later = LossRecord(1, 200, 200, 0.2, {"G": 3.0, "NCE": None}, 0.1, 0.0, lr=1e-4)
    calls = ("losses", record(100, G=5.0, NCE=4.0)), ("images", 1, 100, {"real_A": IMAGE}), ("losses", later)
    show(tensorboard_writer(tmp_path), *calls)
    shown = tensorboard(tmp_path)
    assert curve(shown, "loss/G") == [(100, 5.0), (200, 3.0)] and curve(shown, "loss/NCE") == [(100, 4.0)]
    assert curve(shown, "training/learning_rate") == [(100, np.float32(2e-4)), (200, np.float32(1e-4))]
    (image,) = shown.Images("real_A")
    assert (image.step, image.height, image.width) == (100, 8, 12)
    start = shown.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"nce_layers" in start and b"0,4" in start and b"cut" in start and b"inf" in start
    assert len(list(tmp_path.iterdir())) == 1  # one run of TensorBoard, the options in it


def test_tensorboard_continues_a_resumed_run_and_drops_an_overwritten_one(tensorboard, tmp_path):
    first = tensorboard_writer(tmp_path)
    points = [(100, 5.0), (200, 4.0), (300, 9.0)]  # the checkpoint is after 200
    show(first, *(("losses", record(images, G=value)) for images, value in points))
    time.sleep(1.1)  # event files are ordered by the second in their names
    second = tensorboard_writer(tmp_path)
    second.begin([record(100, G=5.0), record(200, G=4.0)])
    second.losses(record(300, G=3.0))
    second.images(1, 300, {"fake_B": IMAGE})
    second.close()
    shown = tensorboard(tmp_path)
    assert curve(shown, "loss/G") == [(100, 5.0), (200, 4.0), (300, 3.0)]
    assert [image.step for image in shown.Images("fake_B")] == [300]
    time.sleep(1.1)
    show(tensorboard_writer(tmp_path), ("losses", record(100, G=2.0)))
    assert curve(tensorboard(tmp_path), "loss/G") == [(100, 2.0)]


# Weights & Biases


def wandb_run(folder: Path):
    from util.watch.wandb_run import WandbRun

    return WandbRun(folder, "horses", "my project", OPTIONS)


def test_wandb_offline_holds_curves_images_and_options(offline, tmp_path):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    losses = [("losses", record(100, G=5.25)), ("losses", record(200, G=4.125))]
    show(wandb_run(tmp_path), losses[0], ("images", 3, 100, {"fake_B": IMAGE}), losses[1])
    (log,) = sent(tmp_path)
    for part in (b"loss/G", b"5.25", b"4.125", b"horses", b"my project", b"nce_layers", b"epoch 3"):
        assert part in log, part
    assert len(list(tmp_path.rglob("fake_B_*.png"))) == 1
    assert json.loads((tmp_path / "wandb_run.json").read_text())["images"] == 200
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_wandb_continues_the_run_and_sends_no_step_twice(offline, tmp_path):
    points = [(100, 5.25), (200, 4.25), (300, 3.25)]  # the checkpoint is after 200
    show(wandb_run(tmp_path), *(("losses", record(images, G=value)) for images, value in points))
    identity = json.loads((tmp_path / "wandb_run.json").read_text())["id"]
    second = wandb_run(tmp_path)
    second.begin([record(100, G=5.25), record(200, G=4.25)])
    second.losses(record(300, G=3.25))  # a resume repeats it exactly
    second.losses(record(400, G=2.25))
    second.close()
    logs = sent(tmp_path)
    assert len(logs) == 2 and all(identity.encode() in log for log in logs)
    assert b"3.25" in logs[0] and b"3.25" not in logs[1] and b"2.25" in logs[1]
    show(wandb_run(tmp_path), ("losses", record(100, G=1.0)))  # started afresh: another run
    assert json.loads((tmp_path / "wandb_run.json").read_text())["id"] != identity


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
