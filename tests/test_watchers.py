"""visdom, TensorBoard and Weights & Biases: what they show, also resumed, and that they stop nothing."""

import functools
import json
import math
import random
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_process import make_images, words

import train
from util.errors import UserError
from util.watch.loss_log import LossRecord
from util.watch.monitor import Monitor, create_monitor
from util.watch.services import TensorBoard, Visdom, WeightsAndBiases

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


@pytest.fixture
def sent_to_visdom(tmp_path, monkeypatch):
    """What a server would get; there is none."""
    visdom = pytest.importorskip("visdom")
    log = tmp_path / "visdom.log"
    offline = functools.partial(visdom.Visdom, offline=True, log_to_filename=str(log))
    monkeypatch.setattr(visdom, "Visdom", offline)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


def test_visdom_gets_curves_with_gaps_where_losses_are_not_finite_and_a_row_of_images(sent_to_visdom):
    old = [record(500, G=0.5, NCE=4.0), record(750, G=None, NCE=3.5)]
    calls = ("losses", record(1000, G=math.nan, NCE=3.0)), ("images", 7, 9, {"a": IMAGE, "b": IMAGE}, False)
    show(Visdom("run", "http://127.0.0.1", 9, "main", display_id=20), *calls, resumed=old)
    (kind, curves), (more, points), (_, images) = sent_to_visdom()
    assert (kind, more, curves["win"], points["append"]) == ("events", "update", "20", True)
    assert [(line["name"], line["x"], line["y"]) for line in [*curves["data"], *points["data"]]] == [
        ("G", [0.5, 0.75], [0.5, None]),
        ("NCE", [0.5, 0.75], [4.0, 3.5]),
        ("G", [1.0], [None]),
        ("NCE", [1.0], [3.0]),
    ]
    assert images["win"] == "21" and images["opts"]["title"] == "run: images of epoch 7"
    assert images["data"][0]["content"]["caption"] == "a | b"


def test_no_server_costs_one_warning(tmp_path):
    pytest.importorskip("visdom")
    monitor = Monitor(tmp_path, [Visdom("run", "http://127.0.0.1", 9, "main")])
    with pytest.warns(UserWarning, match="visdom at .*--display_id 0.*; training continues"):
        monitor.losses(record(100, G=1.0))
        monitor.close()


def test_a_missing_package_costs_a_warning_or_is_named(tmp_path, monkeypatch):
    for name in ("visdom", "torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    opt = Namespace(no_html=True, display_id=None, tensorboard=False, use_wandb=False, name="run")
    opt.display_server, opt.display_port, opt.display_env, opt.display_ncols = "", 9, "", 4
    with pytest.warns(UserWarning, match="visdom: .*setup.sh"):
        assert create_monitor(opt, tmp_path, epoch_steps=1).watchers == []
    opt.display_id = 0
    for name in ("tensorboard", "use_wandb"):
        with pytest.raises(UserError, match="pip install -r requirements-watch.txt"):
            create_monitor(Namespace(**{**vars(opt), name: True}), tmp_path, epoch_steps=1)


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


def test_tensorboard_shows_a_run_and_drops_what_a_resumed_one_repeats(tensorboard, tmp_path):
    points = [record(100, G=5.0), record(200, G=4.0), record(300, G=9.0)]  # the checkpoint is after 200
    show(TensorBoard(tmp_path, OPTIONS), *(("losses", point) for point in points))
    shown = tensorboard(tmp_path)
    assert curve(shown, "training/learning_rate")[0] == (100, np.float32(2e-4))
    (text,) = shown.Tensors("options/text_summary")
    assert b"nce_layers: [0, 4]" in text.tensor_proto.string_val[0]
    time.sleep(1.1)  # event files are ordered by the second in their names
    calls = ("losses", record(300, G=3.0)), ("images", 1, 300, {"fake_B": IMAGE}, False)
    show(TensorBoard(tmp_path, OPTIONS), *calls, resumed=points[:2])
    shown = tensorboard(tmp_path)
    assert curve(shown, "loss/G") == [(100, 5.0), (200, 4.0), (300, 3.0)]
    assert [(image.step, image.height, image.width) for image in shown.Images("fake_B")] == [(300, 8, 12)]


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
    logs, end = sorted(folder.glob("wandb/offline-run-*/run-*.wandb")), time.monotonic() + 20
    while not all(b"loss/G" in path.read_bytes() for path in logs):
        assert time.monotonic() < end
        time.sleep(0.02)
    return [path.read_bytes() for path in logs]


def test_wandb_offline_holds_a_run_and_a_resume_continues_it(offline, tmp_path):
    def start(*calls, **resumed) -> str:
        show(WeightsAndBiases(tmp_path, "horses", OPTIONS), *calls, **resumed)
        return json.loads((tmp_path / "wandb_run.json").read_text())["id"]

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    identity = start(("losses", record(100, G=5.25)), ("images", 3, 100, {"fake_B": IMAGE}, False))
    (log,) = sent(tmp_path)
    for part in (b"loss/G", b"5.25", b"horses", b"QS-Attn", b"nce_layers", b"epoch 3"):
        assert part in log, part
    assert len(list(tmp_path.rglob("fake_B_*.png"))) == 1
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert start(("losses", record(200, G=4.25)), resumed=[record(100, G=5.25)]) == identity
    assert len(sent(tmp_path)) == 2 and identity.encode() in sent(tmp_path)[1]
    assert start(("losses", record(100, G=1.0))) != identity


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
