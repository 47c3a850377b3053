"""--overwrite: the earlier run is deleted when the new one has saved, and comes back if it never does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from training_process import TrainingProcess, losses, make_images, steps_saved, words

import train
from models.inference import load_generator
from util.run.replaced import put_back, set_aside

SHORT = "--n_epochs 1 --n_epochs_decay 0"  # 5 steps


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def first(dataroot, tmp_path_factory):
    """A complete run with its page."""
    checkpoints = tmp_path_factory.mktemp("first")
    assert train.main([*words(dataroot, checkpoints, SHORT), "--no_html", "false"]) == 0
    return checkpoints


@pytest.fixture
def checkpoints(first, tmp_path):
    """A copy of that run."""
    shutil.copytree(first / "run", tmp_path / "run")
    return tmp_path


@pytest.fixture(autouse=True)
def _restore_determinism():
    yield
    torch.use_deterministic_algorithms(False)


def contents(checkpoints: Path) -> dict[str, bytes]:
    """Every file of the run but the lock."""
    files = [path for path in (checkpoints / "run").rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(checkpoints).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "options, message",
    [
        ("--pretrained_name nosuchrun", "has no latest_net_G.pth to start from"),
        ("--batch_size 100", "less than one batch (100)"),
        ("--lr 1e30", "not finite in step"),  # fails some steps after the start
        ("--crop_size 33", "Take 32"),
    ],
)
def test_a_run_that_cannot_be_replaced_stays(dataroot, checkpoints, capsys, options, message):
    before = contents(checkpoints)
    argv = words(dataroot, checkpoints, SHORT, "--overwrite", options)
    try:
        status = train.main([*argv, "--no_html", "false"])
    except SystemExit as end:  # options that are refused
        status = end.code
    assert status == 2 and message in capsys.readouterr().err
    assert contents(checkpoints) == before


def test_it_stays_when_memory_or_a_step_fails(dataroot, checkpoints, monkeypatch, capsys):
    before = contents(checkpoints)
    for moment in ("create_model", "FailureReport"):
        with monkeypatch.context() as patch:

            def fail(*_):
                raise torch.OutOfMemoryError("CUDA out of memory")

            patch.setattr(train, moment, fail)
            with pytest.raises(torch.OutOfMemoryError):
                train.main(words(dataroot, checkpoints, SHORT, "--overwrite"))
        assert contents(checkpoints) == before
    assert "Nothing was saved: the earlier run is back" in capsys.readouterr().out


def test_a_new_run_replaces_it_at_the_first_save(dataroot, checkpoints):
    old = contents(checkpoints)
    argv = words(dataroot, checkpoints, SHORT, "--overwrite --seed 5 --save_latest_freq 2")
    assert train.main(argv) == 0
    new = contents(checkpoints)
    assert new["run/latest_net_G.pth"] != old["run/latest_net_G.pth"] and "run/web/index.html" not in new
    assert not any(".replaced" in name for name in new)
    assert len(losses(checkpoints)) == 5


def test_it_may_start_from_the_weights_of_the_run_it_replaces(dataroot, checkpoints, capsys):
    argv = words(dataroot, checkpoints, SHORT, "--overwrite --pretrained_name run --lr 1e-12")
    before = torch.load(checkpoints / "run" / "latest_net_G.pth", weights_only=True)
    assert train.main(argv) == 0
    after = torch.load(checkpoints / "run" / "latest_net_G.pth", weights_only=True)
    assert all(torch.allclose(before[key], after[key], atol=1e-7) for key in before)


@pytest.fixture
def killed(dataroot, checkpoints):
    """The new run was killed in its first step."""
    argv = words(dataroot, checkpoints, SHORT, "--overwrite --seed 5")
    training = TrainingProcess(argv, checkpoints / "log", change=step_without_end)
    training.wait_until(lambda: "in a step" in training.output())
    training.kill()
    assert not (checkpoints / "run" / "latest_state.pth").exists()
    return checkpoints


def step_without_end():
    import time

    from models.cut_model import CUTModel

    def step(model):
        print("in a step", flush=True)
        while True:
            time.sleep(0.1)

    CUTModel.optimize_parameters = step


@pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed")
def test_after_a_kill_the_next_start_finds_the_old_run(dataroot, first, killed, capsys):
    assert train.main(words(dataroot, killed, SHORT)) == 2
    assert "there is a run in" in capsys.readouterr().err
    assert contents(killed) == contents(first)


@pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed")
def test_after_a_kill_the_new_run_can_be_continued(dataroot, killed, capsys):
    assert train.main(words(dataroot, killed, "--continue_train")) == 0
    assert "Nothing was saved in" in capsys.readouterr().out
    assert steps_saved(killed) == 5 and not (killed / "run" / ".replaced").exists()
    saved = (killed / "run" / "train_opt.txt").read_text()
    assert "seed: 5" in saved


@pytest.mark.parametrize("moved", range(18))
def test_a_kill_while_files_are_moved_loses_none(dataroot, first, checkpoints, monkeypatch, capsys, moved):
    """Whichever file was the last to be moved, to or fro, the run is whole again at the next start."""
    rename, count = Path.rename, iter(range(100))

    def cut_short(path, target):
        if next(count) == moved:
            raise KeyboardInterrupt
        return rename(path, target)

    folder = checkpoints / "run"
    monkeypatch.setattr(Path, "rename", cut_short)
    with pytest.raises(KeyboardInterrupt):
        set_aside(folder)
        put_back(folder)
    monkeypatch.undo()
    status = train.main(
        ["--checkpoints_dir", str(checkpoints), *"--name run --gpu_ids -1".split(), "--continue_train"]
    )
    assert status == 0 and "The run is complete" in capsys.readouterr().out
    ours = {name: content for name, content in contents(checkpoints).items() if name.endswith(".pth")}
    assert ours == {name: content for name, content in contents(first).items() if name.endswith(".pth")}
    load_generator("run", checkpoints, device="cpu")


def test_weights_of_single_epochs_go_with_their_run(dataroot, checkpoints):
    """Otherwise an evaluation of all epochs would mix two runs."""
    epoch = checkpoints / "run" / "77_net_G.pth"
    shutil.copy(checkpoints / "run" / "latest_net_G.pth", epoch)
    assert train.main(words(dataroot, checkpoints, f"{SHORT} --overwrite")) == 0
    assert not epoch.exists() and (checkpoints / "run" / "latest_net_G.pth").exists()
