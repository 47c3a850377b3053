"""A run that stops and continues is the run that never stopped, bit for bit."""

from __future__ import annotations

import functools
import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from training_process import assert_same, make_images

import test as translation
import train
from models.base_model import BaseModel
from options.train_options import TrainOptions
from util import distributed
from util.run.progress import Clock, Progress
from util.run.stop_signal import StopSignal
from util.watch.loss_log import read_loss_records
from util.watch.report import Report

DATA = Path(__file__).parent / "data"
TINY = (
    "--gpu_ids -1 --display_id 0 --no_html --ngf 2 --ndf 2 "
    "--load_size 40 --crop_size 32 --print_freq 1 --deterministic"
).split()
CONTRAST = "--netF_nc 4 --num_patches 8 --nce_layers 0,4,8,12,15"
SESIM = "--model sesim --vgg_weights random --attn_layers 2,4 --patch_nums 8 --patch_size 3"


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def _restore_determinism():
    yield
    torch.use_deterministic_algorithms(False)


def run(dataroot, folder, *argv):
    length = [] if "--n_iterations" in argv else "--n_epochs 1 --n_epochs_decay 2".split()
    networks = [] if {"munit", "stargan"} & set(argv) else "--netG resnet_4blocks".split()
    folders = ["--dataroot", str(dataroot), "--checkpoints_dir", str(folder)]
    return train.main([*folders, "--name", "run", *TINY, *networks, *length, *argv])


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


MUNIT = "--model munit --style_dim 3 --mlp_dim 4 --n_res 1 --n_layer 2 --num_scales 2"
VARIANTS = {
    "local_global": f"--QS_mode local_global {CONTRAST}",
    "fastcut": f"--model fastcut {CONTRAST}",
    "cycle_gan": "--model cycle_gan",
    "qs_dual": f"--model qs_dual --QS_mode local_global {CONTRAST}",
    "lsesim": f"{SESIM} --learned_attn",
    "asgit": "--model asgit --netD trainable_attn --attention_source discriminator --use_rec",
    "iterations": f"--model cut --n_iterations 6 --n_iterations_decay 9 {CONTRAST}",
    "munit": f"{MUNIT} --n_iterations 15 --lr_decay_iters 4",
    "qs_multi": "--model qs_multi --n_iterations 6 --n_iterations_decay 9 "
    "--netF_nc 4 --num_patches 8 --nce_layers 0,4,8,12",
    "stargan": "--model stargan --n_iterations 6 --n_iterations_decay 9 --batch_size 1 "
    "--g_repeat_num 1 --d_repeat_num 3 --n_critic 3",  # G's update is in steps 3, 6, ...
}
WITHOUT_POOL = {"munit", "qs_multi", "stargan"}


# variant, steps, workers. An epoch has 5 images: within the first, at its end, behind the schedule's bend
CASES = [
    ("local_global", 3, 2),
    ("local_global", 5, 0),
    ("local_global", 8, 0),
    ("fastcut", 8, 2),
    ("cycle_gan", 8, 0),
    ("qs_dual", 5, 2),
    ("lsesim", 3, 0),
    ("asgit", 8, 0),
    ("iterations", 8, 0),
    ("munit", 8, 2),
    ("qs_multi", 3, 0),
    ("stargan", 8, 0),
    ("stargan", 11, 2),  # in the second epoch of 10 steps
]


def words_of(variant, workers):
    """The options of a variant, with a pool of images that is full after three steps."""
    words = [*VARIANTS[variant].split(), "--num_threads", str(workers)]
    return words if variant in WITHOUT_POOL else [*words, "--pool_size", "3"]


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


RESUME = "--name run --gpu_ids -1 --continue_train".split()


def test_a_plateau_schedule_sees_the_mean_over_the_whole_epoch(dataroot, tmp_path, stop_after, monkeypatch):
    """Of all its steps, those before a stop included."""
    means, update = [], BaseModel.update_learning_rate
    stop_after(3)
    assert run(dataroot, tmp_path, "--lr_policy", "plateau", *CONTRAST.split()) == 143
    monkeypatch.undo()
    monkeypatch.setattr(
        BaseModel, "update_learning_rate", lambda model, mean: (means.append(mean), update(model, mean))
    )
    assert train.main(["--checkpoints_dir", str(tmp_path), *RESUME]) == 0
    logged: dict[int, list[float]] = {}
    for record in read_loss_records(tmp_path / "run"):
        logged.setdefault(record.epoch, []).append(record.losses["G"])
    assert [len(losses) for losses in logged.values()] == [5, 5, 5]
    assert means == pytest.approx([sum(losses) / 5 for losses in logged.values()], rel=1e-6)


def test_processes_resume_from_the_mean_of_their_sums_of_the_headline_loss(monkeypatch):
    """Process 0 alone writes the checkpoint, and all resume from it."""
    opt = TrainOptions().parse("--lr_policy plateau --gpu_ids -1".split())

    def epoch_sum(progress, loss):
        model = Namespace(device="cpu", headline=("G",), losses={"G": torch.tensor(loss)})
        report = Report(None, model, progress, opt, 4, 2)
        report.begin_epoch(Clock())
        report.step()
        report.save_mean()
        return progress.loss_G_sum

    before, after = (1.0, 2.0), (5.0, 8.0)  # losses of two processes, before and after a stop
    monkeypatch.setattr(distributed, "mean", lambda values: [sum(before) / 2])
    saved = [epoch_sum(Progress(images=10), loss) for loss in before]
    monkeypatch.undo()
    resumed = [epoch_sum(Progress(images=12, loss_G_sum=saved[0]), loss) for loss in after]
    assert sum(resumed) == sum(before) + sum(after)


@pytest.fixture
def stopped(dataroot, tmp_path, stop_after, monkeypatch):
    """A run stopped in its first epoch, with a data set of its own."""
    shutil.copytree(dataroot, tmp_path / "data")
    stop_after(3)
    assert run(tmp_path / "data", tmp_path, "--model", "cut", *CONTRAST.split()) == 143
    monkeypatch.undo()
    return tmp_path


def resume(stopped, *more):
    return train.main(["--checkpoints_dir", str(stopped), *RESUME, *more])


def test_images_and_options_that_changed_are_noted(stopped, capsys):
    """The epoch ends where fewer images are left than it has seen."""
    for number in range(3):
        (stopped / "data" / "trainA" / f"{number}.png").unlink()
        (stopped / "data" / "trainB" / f"{number}.png").unlink()
    assert resume(stopped, "--num_patches", "4", "--crop_size", "36", "--print_freq", "2") == 0
    said = capsys.readouterr().out
    assert "note: the images are not those of the run so far" in said
    assert "domain A: 5 images there, 2 now; domain B: 4 images there, 1 now" in said
    assert "crop_size: 32 there, 36 now; num_patches: 8 there, 4 now" in said and "print_freq:" not in said
    assert "(epoch: 1, iters: 4" not in said and "End of epoch 3 / 3" in said


def test_nothing_is_noted_where_the_same_images_moved(stopped, capsys):
    (stopped / "data").rename(stopped / "elsewhere")
    assert resume(stopped, "--dataroot", str(stopped / "elsewhere")) == 0
    assert "note:" not in capsys.readouterr().out


def test_a_state_of_other_networks_is_refused_and_the_option_named(stopped, capsys):
    state = torch.load(stopped / "run" / "latest_state.pth", weights_only=True)
    state["options"]["ngf"] = 8
    torch.save(state, stopped / "run" / "latest_state.pth")
    assert resume(stopped) == 2
    said = capsys.readouterr().err
    assert "latest_state.pth was saved with other networks than these options build: netG: " in said
    assert "--ngf 8" in said and "--ngf 2" in said


def test_more_iterations_continue_within_the_epoch(dataroot, tmp_path, capsys):
    """A run of 7 iterations, continued to 12, is the run of 12; its epochs have 5."""
    argv = f"--model cut {CONTRAST} --lr_policy step --lr_decay_iters 4 --lr_decay_gamma 0.5".split()
    assert run(dataroot, tmp_path / "whole", *argv, "--n_iterations", "12") == 0
    assert run(dataroot, tmp_path / "parts", *argv, "--n_iterations", "7") == 0
    again = f"--checkpoints_dir {tmp_path}/parts --name run --gpu_ids -1 --continue_train".split()
    assert train.main(again) == 0
    assert "The run is complete: 7 iterations. Raise --n_iterations" in capsys.readouterr().out
    assert train.main([*again, "--n_iterations", "12"]) == 0
    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    assert whole[1] == parts[1] and (whole[1]["steps"], whole[1]["epoch"], whole[1]["position"]) == (12, 3, 2)
    assert_same(whole[0], parts[0])
    assert losses_of(whole[2]) == losses_of(parts[2]) and len(losses_of(whole[2])) == 12
    assert whole[0]["optimizers"]["G"]["param_groups"][0]["lr"] == 0.0002 / 8  # after 4, 8 and 12


def test_a_run_of_version_1_0_resumes_exactly_and_translates(tmp_path, monkeypatch):
    """A run stopped in its second epoch by that version, and what it makes of the rest of the five epochs."""
    run = tmp_path / "checkpoints" / "run"
    shutil.copytree(DATA / "run_1.0", run)
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "data")
    words = "--checkpoints_dir checkpoints --name run --gpu_ids -1".split()
    assert train.main([*words, "--continue_train"]) == 0
    state = torch.load(run / "latest_state.pth", weights_only=True)
    assert (state["progress"]["epoch"], state["progress"]["images"]) == (6, 25)
    expected = torch.load(run / "expected_net_G.pth", weights_only=True)
    for key, weight in torch.load(run / "latest_net_G.pth", weights_only=True).items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-3, atol=1e-6)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len([record for record in records if record["type"] == "losses"]) == 25
    shutil.copytree(tmp_path / "data" / "trainA", tmp_path / "data" / "testA")
    shutil.copytree(tmp_path / "data" / "trainB", tmp_path / "data" / "testB")
    assert translation.main(words) == 0
    assert len(list(tmp_path.glob("results/run/test_latest/images/fake_B/*.png"))) == 5
