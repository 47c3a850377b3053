"""visdom, TensorBoard and Weights & Biases: what they show, also resumed, and that they stop nothing."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_process import make_images, words
from visdom_server import visdom_server, wait_until

import train
from options.train_options import TrainOptions
from util.images import image_grid
from util.watch.loss_log import LossRecord
from util.watch.monitor import Monitor, create_monitor

LOCAL = "http://127.0.0.1"
IMAGE = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
OPTIONS = {"lr": 2e-4, "model": "cut", "nce_layers": [0, 4], "max_dataset_size": float("inf")}


def record(images: int, **losses: float) -> LossRecord:
    """After so many images of an epoch of 1000."""
    return LossRecord(1, images, images, images / 1000, losses, 0.1, 0.0, lr=2e-4)


def show(watcher, *calls: tuple, resumed: list[LossRecord] | None = None) -> None:
    """Make calls as a monitor would, from the beginning to the end."""
    for name, *arguments in (("begin", resumed or []), *calls, ("close",)):
        getattr(watcher, name)(*arguments)


# visdom


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """Of a server."""
    pytest.importorskip("visdom")
    with visdom_server(tmp_path_factory.mktemp("visdom")) as port:
        yield port


def window(port: int, number: int) -> dict:
    """What the server holds of a window."""
    import requests

    answer = requests.post(f"{LOCAL}:{port}/win_data", data=json.dumps({"win": str(number), "eid": "main"}))
    return json.loads(answer.text)


def visdom_client(port: int, **settings):
    from util.watch.visdom_client import VisdomClient

    return VisdomClient("run", LOCAL, port, "main", **settings)


@pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning")
def test_visdom_holds_curves_with_gaps_where_losses_are_not_finite(port):
    old = [record(500, G=0.5, NCE=4.0), record(750, G=None, NCE=3.5)]
    new = record(1000, G=0.25, NCE=3.0), record(1250, G=math.nan, NCE=2.5)
    show(visdom_client(port), *(("losses", point) for point in new), resumed=old)
    shown = window(port, 1)
    assert shown["title"] == "run: losses"
    assert [(line["name"], line["x"], line["y"]) for line in shown["content"]["data"]] == [
        ("G", [0.5, 0.75, 1.0, 1.25], [0.5, None, 0.25, None]),
        ("NCE", [0.5, 0.75, 1.0, 1.25], [4.0, 3.5, 3.0, 2.5]),
    ]
    show(visdom_client(port), ("losses", record(100, G=1.0)))  # a fresh start
    assert [line["y"] for line in window(port, 1)["content"]["data"]] == [[1.0]]


@pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning")
def test_visdom_shows_images_in_one_window_or_each_in_its_own(port):
    images = {label: np.full((8, 12, 3), value, np.uint8) for label, value in (("a", 9), ("b", 50), ("c", 0))}
    show(visdom_client(port, display_id=20, ncols=2), ("images", 7, 100, images))
    shown = window(port, 21)
    assert shown["content"]["caption"] == "a | b | c" and shown["title"] == "run: images of epoch 7"
    picture = Image.open(io.BytesIO(base64.b64decode(shown["content"]["src"].split(",")[1])))
    np.testing.assert_array_equal(np.asarray(picture), image_grid(list(images.values()), 2))
    show(visdom_client(port, display_id=30, ncols=0), ("images", 1, 100, images))
    assert window(port, 33)["content"]["caption"] == "c"


def test_no_server_costs_one_warning(tmp_path):
    pytest.importorskip("visdom")
    monitor = Monitor(tmp_path, [visdom_client(port=9)])
    with pytest.warns(UserWarning, match="visdom at .*--display_id 0.*; training continues") as caught:
        for images in (100, 200):
            monitor.losses(record(images, G=1.0))
        monitor.close()
    assert len(caught) == 1


def test_visdom_not_installed_costs_one_warning(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "util.watch.visdom_client", raising=False)
    monkeypatch.setitem(sys.modules, "visdom", None)  # importing it now fails
    opt = Namespace(no_html=True, display_id=None, tensorboard=False, use_wandb=False)
    with pytest.warns(UserWarning, match="visdom: .*setup.sh"):
        assert create_monitor(opt, tmp_path, epoch_steps=1).watchers == []


# TensorBoard


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> EventAccumulator:
        return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()

    return read


def curve(shown, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in shown.Scalars(tag)]


def test_tensorboard_shows_a_run_continues_a_resumed_one_and_drops_an_overwritten_one(tensorboard, tmp_path):
    from util.watch.tensorboard_writer import TensorBoardWriter

    points = [record(100, G=5.0), record(200, G=4.0), record(300, G=9.0)]  # the checkpoint is after 200
    show(TensorBoardWriter(tmp_path, OPTIONS), *(("losses", point) for point in points))
    shown = tensorboard(tmp_path)
    assert curve(shown, "training/learning_rate")[0] == (100, np.float32(2e-4))
    (text,) = shown.Tensors("options/text_summary")
    assert b"nce_layers: [0, 4]" in text.tensor_proto.string_val[0]
    time.sleep(1.1)  # event files are ordered by the second in their names
    calls = ("losses", record(300, G=3.0)), ("images", 1, 300, {"fake_B": IMAGE})
    show(TensorBoardWriter(tmp_path, OPTIONS), *calls, resumed=points[:2])
    shown = tensorboard(tmp_path)
    assert curve(shown, "loss/G") == [(100, 5.0), (200, 4.0), (300, 3.0)]
    assert [(image.step, image.height, image.width) for image in shown.Images("fake_B")] == [(300, 8, 12)]
    time.sleep(1.1)
    show(TensorBoardWriter(tmp_path, OPTIONS), ("losses", record(100, G=2.0)))
    assert curve(tensorboard(tmp_path), "loss/G") == [(100, 2.0)]


# Weights & Biases


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


def test_wandb_offline_holds_a_run_and_a_resume_continues_it(offline, tmp_path):
    from util.watch.wandb_run import WandbRun

    def start(*calls, **resumed) -> str:
        show(WandbRun(tmp_path, "horses", OPTIONS), *calls, **resumed)
        return json.loads((tmp_path / "wandb_run.json").read_text())["id"]

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    identity = start(("losses", record(100, G=5.25)), ("images", 3, 100, {"fake_B": IMAGE}))
    (log,) = sent(tmp_path)
    for part in (b"loss/G", b"5.25", b"horses", b"QS-Attn", b"nce_layers", b"epoch 3"):
        assert part in log, part
    assert len(list(tmp_path.rglob("fake_B_*.png"))) == 1
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert start(("losses", record(200, G=4.25)), resumed=[record(100, G=5.25)]) == identity
    assert len(sent(tmp_path)) == 2 and identity.encode() in sent(tmp_path)[1]
    assert start(("losses", record(100, G=1.0))) != identity


# Options and whole trainings


@pytest.mark.parametrize("flag, package", [("--tensorboard", "tensorboard"), ("--use_wandb", "wandb")])
def test_a_missing_package_is_named_with_what_to_install(flag, package, monkeypatch, capsys):
    for name in [name for name in sys.modules if re.match(rf"(torch\.utils\.)?{package}(\.|$)", name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it now fails
    with pytest.raises(SystemExit) as status:
        TrainOptions().parse([flag])
    assert status.value.code == 2
    assert re.search(f"{flag} .*pip install -r requirements-watch.txt", capsys.readouterr().err)


def test_wandb_without_a_key_is_refused_before_training(tmp_path):
    """In a process of its own: wandb keeps the settings it was first asked for."""
    pytest.importorskip("wandb")
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
    assert {image.step for image in shown.Images("fake_B")} == set(range(1, 16))
    assert len(sent(run)) == 2
