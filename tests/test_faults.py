"""Faults around a training (disks, images, numbers, files) are reported, and nothing good is lost."""

import json
import os
import resource
import shutil

import pytest
import torch
from archives import flip_a_bit
from training_process import assert_same_run, losses, make_images, state_of, steps_saved, words

import train
from models.cut_model import CUTModel
from models.optimizers import FiniteGuard

EVERY_STEP = "--n_epochs 2 --n_epochs_decay 1 --save_latest_freq 1"
STEPS = 15


@pytest.fixture(scope="module")
def whole(dataroot, tmp_path_factory):
    """The run to which nothing happened."""
    checkpoints = tmp_path_factory.mktemp("whole")
    assert train.main(words(dataroot, checkpoints, EVERY_STEP)) == 0
    return checkpoints


@pytest.fixture
def resume(whole, dataroot, tmp_path):
    """resume(*options): the status of continuing a copy of that run, in `tmp_path / "run"`."""
    shutil.copytree(whole / "run", tmp_path / "run")
    return lambda *more: train.main(words(dataroot, tmp_path, "--continue_train --n_epochs 9", *more))


@pytest.fixture
def at_step(monkeypatch):
    """at_step(n, event): event(batch) happens before the n-th step, counted from 1, of the next training."""

    def arrange(number, event):
        take_batch, count = CUTModel.set_input, iter(range(1, 10**6))

        def set_input(model, batch):
            if next(count) == number:
                event(batch)
            take_batch(model, batch)

        monkeypatch.setattr(CUTModel, "set_input", set_input)

    return arrange


# A disk that is full or gone


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(
    dataroot, whole, tmp_path, at_step, capsys
):
    """No file of this process can exceed so many bytes: a write fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(5, lambda batch: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard)))
    try:
        assert train.main(words(dataroot, tmp_path, EVERY_STEP)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert "could not be saved in" in said and "--continue_train" in said
    assert steps_saved(tmp_path) == 4 and not list(tmp_path.glob("run/*.tmp"))
    assert train.main(words(dataroot, tmp_path, EVERY_STEP, "--continue_train")) == 0
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("successor", ["another run", "nothing"])
def test_a_training_whose_folder_was_moved_stops_and_writes_nowhere_else(
    dataroot, whole, tmp_path, at_step, capsys, successor
):
    checkpoints = tmp_path / "checkpoints"

    def move(batch):
        checkpoints.rename(tmp_path / "elsewhere")
        if successor == "another run":
            (checkpoints / "run").mkdir(parents=True)
            (checkpoints / "run" / ".lock").write_text("process 1 on another machine")

    at_step(5, move)
    assert train.main(words(dataroot, checkpoints, EVERY_STEP)) == 2
    assert "run is no longer the folder of this run" in capsys.readouterr().err
    assert [path.name for path in checkpoints.rglob("run/*")] == [".lock"] * (successor == "another run")
    assert steps_saved(tmp_path / "elsewhere") == 4
    assert train.main(words(dataroot, tmp_path / "elsewhere", "--continue_train")) == 0
    assert_same_run(whole, tmp_path / "elsewhere")


def test_options_of_a_resume_that_fails_do_not_stay(resume, tmp_path):
    before = (tmp_path / "run" / "train_opt.json").read_text()
    for more in ("--batch_size 100", "--nce_T 0.5 --max_dataset_size 1 --batch_size 2"):
        assert resume(more) == 2
    assert (tmp_path / "run" / "train_opt.json").read_text() == before


def test_the_options_of_the_state_count_where_a_kill_left_others_beside_it(resume, tmp_path):
    saved = json.loads((tmp_path / "run" / "train_opt.json").read_text())
    (tmp_path / "run" / "train_opt.json").write_text(json.dumps(saved | {"lambda_NCE": 5, "n_epochs": 7}))
    opt = train.TrainOptions().parse(f"--checkpoints_dir {tmp_path} --name run --continue_train".split())
    assert (opt.lambda_NCE, opt.n_epochs) == (1, 2)


def test_a_lack_of_memory_while_a_state_is_loaded_is_no_damage(resume, capsys, monkeypatch):
    def load(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(CUTModel, "load_training_state", load)
    assert resume() == 2
    said = capsys.readouterr().err
    assert "error: not enough memory (CUDA out of memory." in said and "damaged" not in said


# Numbers that are none


def poison(batch):
    batch["A"][0, 0, 0, 0] = float("nan")


def test_a_loss_that_is_not_finite_stops_before_the_weights_take_it(
    dataroot, whole, tmp_path, at_step, capsys
):
    at_step(8, poison)
    assert train.main(words(dataroot, tmp_path, EVERY_STEP)) == 2
    said = capsys.readouterr().err
    assert "not finite in step 8 (image 8, epoch 2)" in said and "D_fake" in said
    assert "trainA" in said and "trainB" in said and ".png" in said  # the images of that step
    assert steps_saved(tmp_path) == 7
    assert train.main(words(dataroot, tmp_path, EVERY_STEP, "--continue_train")) == 0  # the poison is gone
    assert_same_run(whole, tmp_path)


def test_told_late_as_a_gpu_tells_it_nothing_is_trained_or_saved_behind_it(
    dataroot, whole, tmp_path, at_step, monkeypatch, capsys
):
    """On CUDA the host may run some steps ahead of the news. Here it hears of them four steps late."""
    told, history, models = FiniteGuard.failure, [], []

    def late(guard, wait=False):
        history.append(told(guard))
        return told(guard) if wait else history[max(len(history) - 5, 0)]

    create = train.create_model
    monkeypatch.setattr(FiniteGuard, "failure", late)
    monkeypatch.setattr(train, "create_model", lambda opt: models.append(create(opt)) or models[0])
    at_step(8, poison)
    options = "--n_epochs 2 --n_epochs_decay 1 --save_latest_freq 7"
    assert train.main(words(dataroot, tmp_path, options)) == 2
    assert "not finite in step 8 (image 8, epoch 2)" in capsys.readouterr().err
    # D's own update of step 8 is refused too: all of the step's losses see the poisoned image.
    saved = state_of(tmp_path)
    assert saved["progress"]["steps"] == 7
    for name, net in models[0].networks.items():
        assert all(torch.equal(v, saved["model"]["networks"][name][k]) for k, v in net.state_dict().items())


# Images


@pytest.mark.parametrize("workers, choice", [(0, "stop"), (2, "stop"), (2, "skip")])
def test_an_image_that_breaks_in_mid_training(tmp_path, at_step, capfd, workers, choice):
    dataroot = make_images(tmp_path / "images")
    broken = dataroot / "trainA" / "3.png"
    content = broken.read_bytes()
    at_step(6, lambda batch: broken.write_bytes(content[: len(content) // 2]))  # it was good at the start
    more = f"--num_threads {workers} --cache_gb 0 --on_bad_image {choice}"
    argv = words(dataroot, tmp_path, EVERY_STEP, more)
    status = train.main(argv)
    said = capfd.readouterr()
    assert str(broken) in said.err and "Traceback" not in said.err
    if choice == "skip":
        assert status == 0 and steps_saved(tmp_path) == STEPS
        assert said.err.count(str(broken)) == 1
    else:
        assert status == 2 and 5 <= steps_saved(tmp_path) < STEPS  # workers are some batches ahead
        broken.write_bytes(content)
        assert train.main([*argv, "--continue_train"]) == 0
        assert len(losses(tmp_path)) == STEPS


# Checkpoints that are none


class Payload:
    """Unpickled by whoever executes pickled code, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["latest_state.pth", "latest_net_G.pth"])
def test_files_that_are_no_checkpoints_or_carry_code(resume, tmp_path, capsys, name):
    path = tmp_path / "run" / name
    good = path.read_bytes()
    middle = len(good) // 2
    contents = [b"", b"<!DOCTYPE html><html>404</html>", good[:middle], b"\x80\x04]q\x00."]
    if name == "latest_state.pth":  # a disk's lost block and a flipped bit, of which only a checksum tells
        contents.append(good[:middle] + bytes(4096) + good[middle + 4096 :])
        flip_a_bit(path)
        contents.append(path.read_bytes())
    else:
        (tmp_path / "run" / "latest_state.pth").unlink()
    payload = Payload(tmp_path / "executed")
    for odd in ({"x": payload}, payload, [1, 2], {}, {"random": 3}):
        torch.save(odd, path)
        contents.append(path.read_bytes())
    for content in contents:
        path.write_bytes(content)
        assert resume() == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error: ") and name in said, content[:80]
    assert not (tmp_path / "executed").exists()
    assert path.read_bytes() == content  # it is not touched


# Changes of a whole state. Fused Adam would write outside its memory with moments of other shapes.
WRONG = {
    "unknown": lambda state: state["progress"].update(no_such=1),
    "moment_steps": lambda state: state["model"]["optimizers"]["G"]["state"][0].update(step=torch.zeros(2)),
    "shape": lambda state: state["model"]["optimizers"]["G"]["state"][0].update(exp_avg=torch.zeros(1, 1)),
    "type": lambda state: state["model"]["optimizers"]["G"]["state"][0].update(exp_avg_sq="text"),
}


@pytest.mark.parametrize("part", WRONG)
def test_values_that_no_training_saves(resume, tmp_path, capsys, part):
    state = state_of(tmp_path)
    WRONG[part](state)
    torch.save(state, tmp_path / "run" / "latest_state.pth")
    assert resume() == 2
    said = capsys.readouterr().err
    assert "latest_state.pth is damaged" in said and "remove the file and use --continue_train" in said
