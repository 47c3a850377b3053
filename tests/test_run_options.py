"""What each option of data, files and schedule does to real, tiny runs of train.py."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_process import log_records, losses, words

import train


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    """7 images of A and 5 of B for training, 2 of each for validation, 3 pairs; 48 x 40 pixels."""
    root, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    counts = {"trainA": 7, "trainB": 5, "valA": 2, "valB": 2, "train": 3}
    for folder, count in counts.items():
        shape = (40, 96 if folder == "train" else 48, 3)
        (root / folder).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(root / folder / f"{i}.png")
    return root


def run(dataroot, checkpoints, *more):
    """The exit status of a run of 7 steps in each of two epochs, unless `more` says otherwise."""
    try:
        return train.main(words(dataroot, checkpoints, "--n_epochs 1 --n_epochs_decay 1", *more))
    except SystemExit as end:  # options that are refused
        return end.code


def logged(checkpoints):
    """(epoch, iters) of each line of losses."""
    return [(record["epoch"], record["iters"]) for record in log_records(checkpoints)]


def has(checkpoints, name):
    return (checkpoints / "run" / f"{name}_net_G.pth").is_file()


# option -> what is seen in the folder of a run of 7 images per epoch
SEEN = {
    "--n_epochs 1 --n_epochs_decay 0": lambda f: logged(f) == [(1, i) for i in range(1, 8)],
    "--max_dataset_size 2 --epoch_count 2": lambda f: logged(f) == [(2, 1), (2, 2)],
    # the first step, then crossed at 6, 9 and 12 of 12 images
    "--batch_size 3 --print_freq 4": lambda f: logged(f) == [(1, 3), (1, 6), (2, 3), (2, 6)],
    "--phase val": lambda f: logged(f) == [(1, 1), (1, 2), (2, 1), (2, 2)],
    "--dataset_mode aligned": lambda f: logged(f)[2:] == [(1, 3), (2, 1), (2, 2), (2, 3)],
    "--max_dataset_size 1 --n_epochs 3 --save_epoch_freq 2": lambda f: (
        [has(f, e) for e in "1234"] == [False, True, False, True]
    ),
    "--max_dataset_size 3 --save_by_iter --save_latest_freq 2": lambda f: (
        has(f, "iter_4") and has(f, "latest")
    ),
    "--max_dataset_size 1 --no_html": lambda f: not (f / "run" / "web").exists(),
    "--max_dataset_size 2 --update_html_freq 2 --no_html false": lambda f: (
        f / "run" / "web" / "images" / "epoch001_fake_B.png"
    ).is_file(),
    "--max_dataset_size 1 --suffix b": lambda f: (f / "run_b" / "latest_net_G.pth").is_file(),
    "--max_dataset_size 1 --lr_policy plateau --pool_size 2": lambda f: len(losses(f)) == 2,
}


@pytest.mark.parametrize("line", SEEN)
def test_seen_in_the_folder_of_a_run(line, dataroot, tmp_path):
    assert run(dataroot, tmp_path, line) == 0
    assert SEEN[line](tmp_path)


def test_images_of_unequal_size_in_a_step_are_named(tmp_path, capsys):
    for folder, width in [("trainA", 40), ("trainB", 48)]:
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((32, width, 3), 99, dtype=np.uint8)).save(tmp_path / folder / "0.png")
    assert run(tmp_path, tmp_path, "--preprocess none") == 2
    assert "A has 40 x 32 pixels and the one of B beside it 48 x 32" in capsys.readouterr().err


def test_a_seed_gives_the_same_run_again(dataroot, tmp_path):
    for place, seed in (("a", 0), ("b", 0), ("c", 5)):
        assert run(dataroot, tmp_path / place, f"--max_dataset_size 3 --seed {seed}") == 0
    first, again, other = (losses(tmp_path / place) for place in "abc")
    assert first == again != other


def test_a_dry_run_tells_all_and_writes_nothing(dataroot, tmp_path, capsys):
    assert run(dataroot, tmp_path / "runs", "--dry_run --model qs --QS_mode local") == 0
    text = capsys.readouterr().out
    assert re.search(r"QS_mode: local +\t\[default: global\]", text)
    assert "2 epochs, 14 steps" in text and "7 images A, 5 images B; 7 steps" in text
    assert "recon_x_w" not in text  # an option of another model
    assert re.search(r"parameters: G \d\.\d+ M, D \d\.\d+ M, F \d\.\d+ M", text)
    assert not (tmp_path / "runs").exists()


def test_a_run_without_a_page_needs_no_dominate(dataroot, tmp_path, monkeypatch):
    for module in ("util.pages", "util.watch.training_page"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "dominate", None)
    assert run(dataroot, tmp_path, "--max_dataset_size 1 --n_epochs_decay 0 --no_html") == 0


# A run of the same name


@pytest.fixture(scope="module")
def first(dataroot, tmp_path_factory):
    """A complete run of one step with its page."""
    checkpoints = tmp_path_factory.mktemp("first")
    assert run(dataroot, checkpoints, "--max_dataset_size 1 --n_epochs_decay 0 --no_html false") == 0
    return checkpoints


@pytest.fixture
def again(first, dataroot, tmp_path):
    """again(*options): the status of a run in a copy of its folder."""
    shutil.copytree(first / "run", tmp_path / "run")
    return lambda *more: run(dataroot, tmp_path, "--max_dataset_size 1 --n_epochs_decay 0", *more)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "options, messages",
    [
        ("--lr 0.01 --seed 4", ["lr: 0.0002 there, 0.01 now", "seed: 0 there, 4 now", "--continue_train"]),
        ("--overwrite --pretrained_name .", ["has no latest_net_G.pth to start from"]),
        ("--overwrite --crop_size 33", ["Take 32"]),
        (
            "--name second --pretrained_name run --netG resnet_6blocks",
            ["give those of its training, --netG resnet_4blocks"],
        ),
    ],
)
def test_a_run_that_is_not_replaced_stays(again, tmp_path, capsys, options, messages):
    before = contents(tmp_path / "run")
    assert again(options) == 2
    told = capsys.readouterr().err
    assert all(message in told for message in messages) and "ngf" not in told
    assert contents(tmp_path / "run") == before and not list(tmp_path.glob("run.*"))


def test_the_run_before_is_kept_under_the_first_free_name(again, tmp_path, capsys):
    old = contents(tmp_path / "run")
    for number in (1, 2):
        assert again(f"--overwrite --seed {number}") == 0
        said = capsys.readouterr().out
        assert f"The run before is kept in {tmp_path / f'run.replaced-{number}'}." in said
    assert contents(tmp_path / "run.replaced-1") == old
    assert len(losses(tmp_path)) == 1 and not (tmp_path / "run" / "web").exists()


def test_it_may_start_from_the_weights_of_the_run_it_replaces(again, tmp_path):
    before = torch.load(tmp_path / "run" / "latest_net_G.pth", weights_only=True)
    assert again("--overwrite --pretrained_name run --lr 1e-12") == 0
    after = torch.load(tmp_path / "run" / "latest_net_G.pth", weights_only=True)
    assert all(torch.allclose(before[key], after[key], atol=1e-7) for key in before)
