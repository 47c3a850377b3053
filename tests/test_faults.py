"""Faults around a training (disks, images, numbers, files) are reported, and nothing good is lost."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from archives import flip_a_bit
from training_process import assert_same_run, losses, make_images, state_of, steps_saved, words

import train
from models.cut_model import CUTModel
from models.finite_guard import FiniteGuard

PROJECT = Path(__file__).parents[1]
EVERY_STEP = "--n_epochs 2 --n_epochs_decay 1 --save_latest_freq 1"
STEPS = 15


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(dataroot, tmp_path_factory):
    """The run to which nothing happened."""
    checkpoints = tmp_path_factory.mktemp("whole")
    assert train.main(words(dataroot, checkpoints, EVERY_STEP)) == 0
    return checkpoints


@pytest.fixture(autouse=True)
def _restore_determinism():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def at_step(monkeypatch):
    """Arrange that something happens before the n-th step, counted from 1, of the next training."""

    def arrange(events):
        take_batch, count = CUTModel.set_input, iter(range(1, 10**6))

        def set_input(model, batch):
            events.get(next(count), lambda batch: None)(batch)
            take_batch(model, batch)

        monkeypatch.setattr(CUTModel, "set_input", set_input)

    yield arrange


def leftovers(checkpoints):
    return [path.name for path in (checkpoints / "run").iterdir() if path.name.endswith(".tmp")]


# A disk that is full, read-only or gone


@contextlib.contextmanager
def file_size_limit(number):
    """No file of this process can exceed so many bytes: a write fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(
    dataroot, whole, tmp_path, at_step, capsys
):
    full = contextlib.ExitStack()
    at_step({5: lambda batch: full.enter_context(file_size_limit(30_000))})
    with full:
        assert train.main(words(dataroot, tmp_path, EVERY_STEP)) == 2
    said = capsys.readouterr().err
    assert (
        "could not be saved in" in said and "The last good one stays" in said and "--continue_train" in said
    )
    assert steps_saved(tmp_path) == 4 and not leftovers(tmp_path)
    assert train.main(words(dataroot, tmp_path, EVERY_STEP, "--continue_train")) == 0
    assert_same_run(whole, tmp_path)


@contextlib.contextmanager
def small_disk(folder, size="4m"):
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("this user cannot mount a file system")
    try:
        yield folder
    finally:
        while os.path.ismount(folder):
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_real_file_system_that_fails(dataroot, whole, tmp_path, at_step, capsys, fault):
    with small_disk(tmp_path / "disk") as disk:

        def break_disk(batch):
            if fault == "read-only":
                subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
                subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)
            else:
                with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
                    while filler.write(bytes(4096)):
                        pass

        at_step({5: break_disk})
        assert train.main(words(dataroot, disk, EVERY_STEP)) == 2
        said = capsys.readouterr().err
        assert ("with 0 MB free" if fault == "full" else "Read-only file system") in said
        assert steps_saved(disk) == 4 and not leftovers(disk)
        if fault == "read-only":  # nor can another run begin there
            assert train.main(words(dataroot, disk, EVERY_STEP, "--continue_train")) == 2
            assert "cannot be used: [Errno 30]" in capsys.readouterr().err
            subprocess.run(["umount", "-l", str(disk)], check=True)
        else:
            (disk / "filler").unlink()
        assert train.main(words(dataroot, disk, EVERY_STEP, "--continue_train")) == 0
        assert_same_run(whole, disk)


@pytest.mark.parametrize("successor", ["another run", "a file", "nothing"])
def test_a_training_whose_folder_was_moved_stops_and_writes_nowhere_else(
    dataroot, whole, tmp_path, at_step, capsys, successor
):
    checkpoints = tmp_path / "checkpoints"

    def move(batch):
        checkpoints.rename(tmp_path / "elsewhere")
        if successor == "a file":
            checkpoints.write_text("a file in its place")
        elif successor == "another run":
            (checkpoints / "run").mkdir(parents=True)
            (checkpoints / "run" / ".lock").write_text("process 1 on another machine")

    at_step({5: move})
    assert train.main(words(dataroot, checkpoints, EVERY_STEP)) == 2
    assert "run is no longer the folder of this run" in capsys.readouterr().err
    assert [path.name for path in checkpoints.rglob("run/*")] == [".lock"] * (successor == "another run")
    assert steps_saved(tmp_path / "elsewhere") == 4
    assert train.main(words(dataroot, tmp_path / "elsewhere", "--continue_train")) == 0
    assert_same_run(whole, tmp_path / "elsewhere")


def test_options_of_a_resume_that_fails_do_not_stay(dataroot, whole, tmp_path, capsys):
    shutil.copytree(whole / "run", tmp_path / "run")
    before = (tmp_path / "run" / "train_opt.json").read_text()
    for more in ("--batch_size 100", "--nce_T 0.5 --max_dataset_size 1 --batch_size 2"):
        assert train.main(words(dataroot, tmp_path, "--continue_train --n_epochs 9", more)) == 2
    assert (tmp_path / "run" / "train_opt.json").read_text() == before


def test_the_options_of_the_state_count_where_a_kill_left_others_beside_it(dataroot, whole, tmp_path):
    shutil.copytree(whole / "run", tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "train_opt.json").read_text())
    (tmp_path / "run" / "train_opt.json").write_text(json.dumps(saved | {"lambda_NCE": 5, "n_epochs": 7}))
    place = f"--checkpoints_dir {tmp_path} --name run --continue_train"
    opt = train.TrainOptions().parse(place.split())
    assert (opt.lambda_NCE, opt.n_epochs) == (1, 2)


def test_a_lack_of_memory_while_a_state_is_loaded_is_no_damage(
    dataroot, whole, tmp_path, capsys, monkeypatch
):
    def load(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    shutil.copytree(whole / "run", tmp_path / "run")
    monkeypatch.setattr(CUTModel, "load_training_state", load)
    assert train.main(words(dataroot, tmp_path, "--continue_train --n_epochs 9")) == 2
    said = capsys.readouterr().err
    assert "error: not enough memory (CUDA out of memory." in said and "damaged" not in said


@pytest.mark.parametrize("part", ["step", "exp_avg", "exp_avg_sq"])
def test_moments_of_other_shapes_never_reach_adam(dataroot, whole, tmp_path, capsys, part):
    """Fused Adam would write outside its memory."""
    shutil.copytree(whole / "run", tmp_path / "run")
    state = state_of(tmp_path)
    for moments in (torch.zeros(1, 1), torch.zeros(2, dtype=torch.int64), "text"):
        state["model"]["optimizers"]["G"]["state"][0][part] = moments
        torch.save(state, tmp_path / "run" / "latest_state.pth")
        assert train.main(words(dataroot, tmp_path, "--continue_train --n_epochs 9")) == 2
        assert "latest_state.pth is damaged" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error(dataroot, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train.main(words(dataroot, tmp_path / "file")) == 2
    assert "cannot be used" in capsys.readouterr().err


# Numbers that are none


def poison(batch):
    batch["A"][0, 0, 0, 0] = float("nan")


def test_a_loss_that_is_not_finite_stops_before_the_weights_take_it(
    dataroot, whole, tmp_path, at_step, capsys
):
    at_step({8: poison})
    assert train.main(words(dataroot, tmp_path, EVERY_STEP)) == 2
    said = capsys.readouterr().err
    assert (
        "not finite in step 8 (image 8, epoch 2)" in said and "D_fake" in said and "--continue_train" in said
    )
    assert "trainA" in said and "trainB" in said and ".png" in said  # the images of that step
    assert steps_saved(tmp_path) == 7
    assert train.main(words(dataroot, tmp_path, EVERY_STEP, "--continue_train")) == 0  # the poison is gone
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("save_freq", [2, 1000])
def test_told_late_as_a_gpu_tells_it_nothing_is_trained_or_saved_behind_it(
    dataroot, tmp_path, at_step, monkeypatch, capsys, save_freq
):
    """On CUDA the host may run some steps ahead of the news. Here it hears of them four steps late."""
    told = FiniteGuard.failure
    history = []

    def late(guard, wait=False):
        history.append(told(guard))
        return told(guard) if wait else history[max(len(history) - 5, 0)]

    monkeypatch.setattr(FiniteGuard, "failure", late)
    snapshots = {}

    def look(number):
        def take(batch):
            model = training[0]
            snapshots[number] = [p.clone() for net in model.networks.values() for p in net.parameters()]
            if number == 8:
                poison(batch)

        return take

    training = []
    create = train.create_model
    monkeypatch.setattr(train, "create_model", lambda opt: training.append(create(opt)) or training[0])
    at_step({number: look(number) for number in range(1, 16)})
    options = f"--n_epochs 2 --n_epochs_decay 1 --save_latest_freq {save_freq}"
    assert train.main(words(dataroot, tmp_path, options)) == 2
    assert "not finite in step 8 (image 8, epoch 2)" in capsys.readouterr().err
    final = [p for net in training[0].networks.values() for p in net.parameters()]
    for before, after in zip(snapshots[8], final, strict=True):
        # D's own update of step 8 is refused too: all of the step's losses see the poisoned image.
        assert torch.equal(before, after)
    assert not torch.equal(snapshots[7][0], snapshots[8][0])
    if save_freq == 2:
        assert steps_saved(tmp_path) == 6
    else:
        assert max(snapshots) > 8 or max(snapshots) == 8
        assert not (tmp_path / "run" / "latest_state.pth").exists()


def test_a_learning_rate_that_explodes_stops_the_run(dataroot, tmp_path, capsys):
    assert train.main(words(dataroot, tmp_path, "--n_epochs 3 --lr 1e30")) == 2
    said = capsys.readouterr().err
    assert "not finite in step" in said and "lower --lr" in said


# Images


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("choice", ["stop", "skip"])
def test_an_image_that_breaks_in_mid_training(tmp_path, at_step, capfd, workers, choice):
    dataroot = make_images(tmp_path / "images")
    broken = dataroot / "trainA" / "3.png"
    content = broken.read_bytes()
    at_step(
        {6: lambda batch: broken.write_bytes(content[: len(content) // 2])}
    )  # after the look before training
    argv = words(
        dataroot, tmp_path, EVERY_STEP, f"--num_threads {workers} --cache_gb 0 --on_bad_image {choice}"
    )
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


HOSTILE = [
    "new\nline.png",
    "\"quotes' & `ticks`.png",
    "<script>alert(1)<!--.png",
    "%2e%2e%00.png",
    "-rf *.png",
]
NOT_UTF8 = os.fsdecode(b"\xff\xfe \xe9.png")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_hostile_names_through_a_whole_run_with_its_page(tmp_path, at_step, capfd):
    dataroot = make_images(tmp_path / os.fsdecode(b"im\xff\nages"), 6, 6)
    for folder in ("trainA", "trainB"):
        for i, name in enumerate([*HOSTILE, NOT_UTF8]):
            (dataroot / folder / f"{i}.png").rename(dataroot / folder / name)
    checkpoints = tmp_path / "<script>alert('x')</script>\n"
    argv = [
        word
        for word in words(dataroot, checkpoints, "--n_epochs 1 --n_epochs_decay 1")
        if word != "--no_html"
    ]
    argv[argv.index("run")] = "run <img src=x onerror=alert(1)>"
    assert train.main(argv) == 0
    assert train.main([*argv, "--continue_train", "--n_epochs_decay", "2"]) == 0
    run = checkpoints / argv[argv.index("--name") + 1]
    page = (run / "web" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page
    at_step({2: poison})  # a message that names the files
    assert train.main([*argv, "--overwrite"]) == 2
    said = capfd.readouterr().err
    assert "not finite in step 2" in said and "Traceback" not in said and "new\nline" not in said


# Checkpoints that are none


class Payload:
    """Unpickled by whoever executes pickled code, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def damaged(good: bytes) -> dict[str, bytes]:
    middle = len(good) // 2
    return {
        "empty": b"",
        "text": b"no checkpoint at all",
        "page": b"<!DOCTYPE html><html>404</html>",
        "cut": good[:middle],
        "pickle": b"\x80\x04]q\x00.",
    }


@pytest.mark.parametrize("name", ["latest_state.pth", "latest_net_G.pth"])
def test_files_that_are_no_checkpoints_or_carry_code(dataroot, whole, tmp_path, capsys, name):
    shutil.copytree(whole / "run", tmp_path / "run")
    path = tmp_path / "run" / name
    good = path.read_bytes()
    epoch = ["--continue_train"]
    if name != "latest_state.pth":
        (tmp_path / "run" / "latest_state.pth").unlink()
    contents = damaged(good)
    if name == "latest_state.pth":  # a disk's lost block, of which only a checksum tells
        contents["zeroed"] = good[: len(good) // 2] + bytes(4096) + good[len(good) // 2 + 4096 :]
    for content in ({"format": 1, "x": Payload(tmp_path / "executed")}, Payload(tmp_path / "executed")):
        torch.save(content, path)
        contents[f"code {len(contents)}"] = path.read_bytes()
    for content in (
        [1, 2],
        torch.zeros(3),
        {"format": 99},
        {"format": 1},
        {"format": 1, "model": {}, "random": 3},
    ):
        torch.save(content, path)
        contents[f"other {len(contents)}"] = path.read_bytes()
    for kind, content in contents.items():
        path.write_bytes(content)
        status = train.main(words(dataroot, tmp_path, *epoch))
        said = capsys.readouterr().err
        assert status == 2 and "Traceback" not in said, (kind, said)
        assert name in said.splitlines()[-1] and said.splitlines()[-1].startswith("error: "), (kind, said)
    assert not (tmp_path / "executed").exists()
    assert path.read_bytes() == content  # it is not touched


def test_one_flipped_bit_in_the_state_is_noticed(dataroot, whole, tmp_path, capsys):
    shutil.copytree(whole / "run", tmp_path / "run")
    flip_a_bit(tmp_path / "run" / "latest_state.pth")
    assert train.main(words(dataroot, tmp_path, "--continue_train --n_epochs 9")) == 2
    assert "its checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, value",
    [("epoch", "x"), ("epoch", None), ("epoch", -5), ("epoch", 1.5), ("position", 10**9), ("position", -1)]
    + [("position", True), ("steps", float("nan")), ("images", [1]), ("no_such", 1)],
)
def test_a_place_where_no_training_stands(dataroot, whole, tmp_path, capsys, name, value):
    shutil.copytree(whole / "run", tmp_path / "run")
    path = tmp_path / "run" / "latest_state.pth"
    state = torch.load(path, weights_only=True)
    state["progress"] |= {"epoch": 2, "position": 3, name: value}
    torch.save(state, path)
    assert train.main(words(dataroot, tmp_path, "--continue_train")) == 2
    said = capsys.readouterr().err
    assert "latest_state.pth is damaged" in said and "remove the file and use --continue_train" in said
