"""A run that stops and continues is the run that never stopped, bit for bit."""

import functools
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from training_process import assert_same_run, log_records, losses, make_images, state_of

import test as translation
import train
from models.base_model import BaseModel
from options.train_options import TrainOptions
from util import distributed
from util.run.progress import Clock, Progress
from util.watch.monitor import Report

DATA = Path(__file__).parent / "data"
TINY = (
    "--gpu_ids -1 --display_id 0 --no_html --ngf 2 --ndf 2 --name run "
    "--load_size 40 --crop_size 32 --print_freq 1 --deterministic"
)
RESNET = "--netG resnet_4blocks"
EPOCHS = "--n_epochs 1 --n_epochs_decay 2"
STEPS = "--n_iterations 6 --n_iterations_decay 9"
CONTRAST = f"{RESNET} --netF_nc 4 --num_patches 8 --nce_layers 0,4,8,12"
POOL = "--pool_size 3"  # full after three steps
VARIANTS = {
    "local_global": f"--QS_mode local_global {CONTRAST} {EPOCHS} {POOL}",
    "fastcut": f"--model fastcut {CONTRAST} {EPOCHS} {POOL}",
    "cycle_gan": f"--model cycle_gan {RESNET} {EPOCHS} {POOL}",
    "qs_dual": f"--model qs_dual --QS_mode local_global {CONTRAST} {EPOCHS} {POOL}",
    "lsesim": "--model sesim --learned_attn --vgg_weights random --attn_layers 2,4 --patch_nums 8 "
    f"--patch_size 3 {RESNET} {EPOCHS} {POOL}",
    "asgit": "--model asgit --netD trainable_attn --attention_source discriminator --use_rec "
    f"{RESNET} {EPOCHS} {POOL}",
    "iterations": f"--model cut {CONTRAST} {STEPS} {POOL}",
    "munit": "--model munit --style_dim 3 --mlp_dim 4 --n_res 1 --n_layer 2 --num_scales 2 --n_iterations 15 "
    "--lr_decay_iters 4",
    "qs_multi": f"--model qs_multi {CONTRAST} {STEPS}",
    "stargan": "--model stargan --batch_size 1 --g_repeat_num 1 --d_repeat_num 3 --n_critic 3 "
    f"{STEPS}",  # G's update is in steps 3, 6, ...
}

# variant, steps, workers. An epoch has 5 images: within the first, at its end, behind the schedule's bend
CASES = [
    ("local_global", 3, 2), ("local_global", 5, 0), ("local_global", 8, 0), ("fastcut", 8, 2),
    ("cycle_gan", 8, 0), ("qs_dual", 5, 2), ("lsesim", 3, 0), ("asgit", 8, 0), ("iterations", 8, 0),
    ("munit", 8, 2), ("qs_multi", 3, 0), ("stargan", 11, 2),  # in the second epoch of 10 steps
]  # fmt: skip


def run(dataroot, folder, line):
    return train.main(f"--dataroot {dataroot} --checkpoints_dir {folder} {TINY} {line}".split())


def resume(folder, line=""):
    return train.main(f"--checkpoints_dir {folder} --name run --gpu_ids -1 --continue_train {line}".split())


@pytest.fixture(scope="module")
def undisturbed(dataroot, tmp_path_factory):
    """undisturbed(variant): the folder of a run of it that never stopped, trained once."""

    @functools.cache
    def trained(variant):
        folder = tmp_path_factory.mktemp(variant)
        assert run(dataroot, folder, f"{VARIANTS[variant]} --num_threads 0") == 0
        return folder

    return trained


@pytest.mark.parametrize("variant, steps, workers", CASES)
def test_stopping_and_continuing_changes_nothing(
    dataroot, tmp_path, undisturbed, stop_after, variant, steps, workers
):
    whole = undisturbed(variant)
    stop_after(steps)
    assert run(dataroot, tmp_path, f"{VARIANTS[variant]} --num_threads {workers}") == 143
    torch.rand(7)  # whatever else drew in between
    assert resume(tmp_path) == 0
    assert_same_run(whole, tmp_path)
    assert state_of(tmp_path)["progress"]["steps"] == len(losses(tmp_path)) == 15


def test_a_plateau_schedule_sees_the_mean_over_the_whole_epoch(dataroot, tmp_path, stop_after, monkeypatch):
    """Of all its steps, those before a stop included."""
    means, update = [], BaseModel.update_learning_rate
    stop_after(3)
    assert run(dataroot, tmp_path, f"--lr_policy plateau {CONTRAST} {EPOCHS}") == 143
    monkeypatch.setattr(
        BaseModel, "update_learning_rate", lambda model, mean: (means.append(mean), update(model, mean))
    )
    assert resume(tmp_path) == 0
    logged = [record["losses"]["G"] for record in log_records(tmp_path)]
    assert means == pytest.approx([sum(logged[at : at + 5]) / 5 for at in (0, 5, 10)], rel=1e-6)


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
def stopped(dataroot, tmp_path, stop_after):
    """A run stopped in its first epoch, with a data set of its own."""
    shutil.copytree(dataroot, tmp_path / "data")
    stop_after(3)
    assert run(tmp_path / "data", tmp_path, f"--model cut {CONTRAST} {EPOCHS}") == 143
    return tmp_path


def test_images_and_options_that_changed_are_noted(stopped, capsys):
    """The epoch ends where fewer images are left than it has seen."""
    for number in range(3):
        (stopped / "data" / "trainA" / f"{number}.png").unlink()
        (stopped / "data" / "trainB" / f"{number}.png").unlink()
    assert resume(stopped, "--num_patches 4 --crop_size 36 --print_freq 2") == 0
    said = capsys.readouterr().out
    assert "note: the images are not those of the run so far" in said
    assert "domain A: 5 images there, 2 now; domain B: 4 images there, 1 now" in said
    assert "crop_size: 32 there, 36 now; num_patches: 8 there, 4 now" in said and "print_freq:" not in said
    assert "(epoch: 1, iters: 4" not in said and "End of epoch 3 / 3" in said


def test_a_state_of_other_networks_is_refused_and_the_option_named(stopped, capsys):
    state = state_of(stopped)
    state["options"]["ngf"] = 8
    torch.save(state, stopped / "run" / "latest_state.pth")
    assert resume(stopped) == 2
    said = capsys.readouterr().err
    assert "latest_state.pth was saved with other networks than these options build: netG: " in said
    assert "--ngf 8" in said and "--ngf 2" in said


def test_more_iterations_continue_within_the_epoch(dataroot, tmp_path, capsys):
    """A run of 7 iterations, continued to 12, is the run of 12; its epochs have 5."""
    line = f"--model cut {CONTRAST} --lr_policy step --lr_decay_iters 4 --lr_decay_gamma 0.5"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(dataroot, whole, f"{line} --n_iterations 12") == 0
    assert run(dataroot, parts, f"{line} --n_iterations 7") == 0
    assert resume(parts) == 0
    assert "The run is complete: 7 iterations. Raise --n_iterations" in capsys.readouterr().out
    assert resume(parts, "--n_iterations 12") == 0
    assert_same_run(whole, parts)
    state = state_of(parts)
    assert [state["progress"][name] for name in ("steps", "epoch", "position")] == [12, 3, 2]
    assert state["model"]["optimizers"]["G"]["param_groups"][0]["lr"] == 0.0002 / 8  # after 4, 8 and 12


def test_a_run_of_version_1_0_resumes_exactly_and_translates(tmp_path, monkeypatch):
    """A run stopped in its second epoch by that version, and what it makes of the rest of the five epochs."""
    run = tmp_path / "checkpoints" / "run"
    shutil.copytree(DATA / "run_1.0", run)
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "data")
    assert resume("checkpoints") == 0
    progress = state_of(tmp_path / "checkpoints")["progress"]
    assert (progress["epoch"], progress["images"]) == (6, 25) and len(losses(tmp_path / "checkpoints")) == 25
    expected = torch.load(run / "expected_net_G.pth", weights_only=True)
    for key, weight in torch.load(run / "latest_net_G.pth", weights_only=True).items():
        if key.endswith("weight") or key == "model.25.bias":  # others, before a norm, follow rounding alone
            torch.testing.assert_close(weight, expected[key], rtol=1e-3, atol=1e-6)
    for domain in "AB":
        shutil.copytree(tmp_path / "data" / f"train{domain}", tmp_path / "data" / f"test{domain}")
    assert translation.main("--checkpoints_dir checkpoints --name run --gpu_ids -1".split()) == 0
    assert len(list(tmp_path.glob("results/run/test_latest/images/fake_B/*.png"))) == 5
