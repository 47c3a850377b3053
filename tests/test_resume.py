"""A run that stops and continues is the run that never stopped, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from training_process import assert_same

import train
from util.run.stop_signal import StopSignal
from util.watch.report import Report

TINY = (
    "--gpu_ids -1 --display_id 0 --no_html --ngf 2 --ndf 2 --netG resnet_4blocks --load_size 40 --crop_size 32 "
    "--n_epochs 1 --n_epochs_decay 2 --print_freq 1 --deterministic"
).split()
PATCHES = "--netF_nc 4 --num_patches 8 --nce_layers 0,4,8,12,15"


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    for folder, count in {"trainA": 5, "trainB": 4}.items():
        (root / folder).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (30, 28, 3), dtype=np.uint8)).save(
                root / folder / f"{i}.png"
            )
    return root


@pytest.fixture(autouse=True)
def _restore_determinism():
    yield
    torch.use_deterministic_algorithms(False)


def run(dataroot, folder, *argv):
    return train.main(
        ["--dataroot", str(dataroot), "--checkpoints_dir", str(folder), "--name", "run", *TINY, *argv]
    )


def final_state(folder):
    state = torch.load(folder / "run" / "latest_state.pth", weights_only=True)
    return state["model"], state["progress"], (folder / "run" / "loss_log.txt").read_text()


def losses_of(log):
    """The lines of losses without their times."""
    return [line.split(")")[1] for line in log.splitlines() if line.startswith("(epoch")]


@pytest.fixture
def stop_after(monkeypatch):
    """Let a training be asked to stop after so many steps."""

    def arrange(steps):
        done = iter(range(1, 10**6))
        original = Report.step

        def step(self):
            original(self)
            if next(done) == steps:
                signal_stop.received = 15

        signal_stop = StopSignal()
        monkeypatch.setattr(train, "StopSignal", lambda: signal_stop)
        monkeypatch.setattr(Report, "step", step)

    yield arrange


VARIANTS = {
    "global": f"{PATCHES} --QS_mode global",
    "local": f"{PATCHES} --QS_mode local",
    "local_global": f"{PATCHES} --QS_mode local_global",
    "cut": f"{PATCHES} --model cut",
    "fastcut": f"{PATCHES} --model fastcut --n_epochs 1 --n_epochs_decay 2",
    "asgit": "--model asgit",
    "asgit_v2": "--model asgit --netD trainable_attn --attention_fusion alpha --attention_source discriminator --use_rec",
    "asgit_supervised": "--model asgit_supervised --dataset_mode unaligned --no_dropout false --batch_size 1",
}


# 5 images an epoch: stopped within the first, at its end, and behind the schedule's bend
CASES = [(variant, steps, 0) for variant in VARIANTS for steps in (3, 5, 8)] + [
    ("global", 3, 2),
    ("fastcut", 8, 2),
]


@pytest.mark.parametrize("variant, steps, workers", CASES)
def test_stopping_and_continuing_changes_nothing(
    dataroot, tmp_path, stop_after, monkeypatch, variant, steps, workers
):
    argv = [*VARIANTS[variant].split(), "--num_threads", str(workers), "--pool_size", "3"]
    assert run(dataroot, tmp_path / "whole", *argv) == 0
    stop_after(steps)
    assert run(dataroot, tmp_path / "parts", *argv) == 143
    monkeypatch.undo()
    torch.rand(7)  # whatever else drew in between
    assert (
        train.main(
            [
                "--checkpoints_dir",
                str(tmp_path / "parts"),
                "--name",
                "run",
                "--gpu_ids",
                "-1",
                "--continue_train",
            ]
        )
        == 0
    )
    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    assert whole[1] == parts[1] and whole[1]["steps"] == 15
    assert_same(whole[0], parts[0])
    assert losses_of(whole[2]) == losses_of(parts[2]) and len(losses_of(whole[2])) == 15
