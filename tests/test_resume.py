"""A run that stops and continues is the run that never stopped, bit for bit."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from training_process import assert_same

import train
from util.run.stop_signal import StopSignal
from util.watch.report import Report

TINY = (
    "--gpu_ids -1 --display_id 0 --no_html --ngf 2 --ndf 2 --netG resnet_4blocks "
    "--load_size 40 --crop_size 32 --n_epochs 1 --n_epochs_decay 2 --print_freq 1 --deterministic"
).split()


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


@pytest.fixture(scope="module")
def undisturbed(dataroot, tmp_path_factory):
    """undisturbed(variant): the final state of a run of it that never stopped, trained once."""

    @functools.cache
    def final(variant):
        folder = tmp_path_factory.mktemp(variant)
        assert run(dataroot, folder, *words_of(variant, workers=0)) == 0
        return final_state(folder)

    return final


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
    "global": "--QS_mode global",
    "local": "--QS_mode local",
    "local_global": "--QS_mode local_global",
    "cut": "--model cut",
    "fastcut": "--model fastcut --n_epochs 1 --n_epochs_decay 2",
    "cycle_gan": "--model cycle_gan",
    "dcl": "--model dcl",
    "qs_dual": "--model qs_dual --QS_mode local_global",
}
OF_PATCHES = "--netF_nc 4 --num_patches 8 --nce_layers 0,4,8,12,15".split()  # of all models but CycleGAN


# 5 images an epoch: stopped within the first, at its end, and behind the schedule's bend
CASES = [(variant, steps, 0) for variant in VARIANTS for steps in (3, 5, 8)] + [
    ("global", 3, 2),
    ("fastcut", 8, 2),
    ("cycle_gan", 8, 2),
    ("dcl", 3, 2),
    ("qs_dual", 5, 2),
]


def words_of(variant, workers):
    """The options of a variant, with a pool of images that is full after three steps."""
    patches = OF_PATCHES if variant != "cycle_gan" else []
    return [*VARIANTS[variant].split(), "--num_threads", str(workers), "--pool_size", "3", *patches]


@pytest.mark.parametrize("variant, steps, workers", CASES)
def test_stopping_and_continuing_changes_nothing(
    dataroot, tmp_path, undisturbed, stop_after, monkeypatch, variant, steps, workers
):
    whole = undisturbed(variant)
    stop_after(steps)
    assert run(dataroot, tmp_path, *words_of(variant, workers)) == 143
    monkeypatch.undo()
    torch.rand(7)  # whatever else drew in between
    again = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--gpu_ids", "-1", "--continue_train"]
    assert train.main(again) == 0
    parts = final_state(tmp_path)
    assert whole[1] == parts[1] and whole[1]["steps"] == 15
    assert_same(whole[0], parts[0])
    assert losses_of(whole[2]) == losses_of(parts[2]) and len(losses_of(whole[2])) == 15
