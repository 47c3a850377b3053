"""What each option of data, files and schedule does to real, tiny runs of train.py."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

import train

TINY = (
    "--gpu_ids -1 --display_id 0 --ngf 2 --ndf 2 --netF_nc 4 --num_patches 4 --netG resnet_4blocks "
    "--nce_layers 0,4,12 --num_threads 0 "
    "--load_size 40 --crop_size 32 --n_epochs 1 --n_epochs_decay 1 --print_freq 1 "
    "--save_epoch_freq 9 --name run"
).split()


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    """7 images of A and 5 of B for training, 2 of each for validation, 3 pairs; 48 x 40 pixels."""
    root, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    counts = {"trainA": 7, "trainB": 5, "valA": 2, "valB": 2, "train": 3}
    for folder, count in counts.items():
        width = 96 if folder == "train" else 48
        (root / folder).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (40, width, 3), dtype=np.uint8)).save(
                root / folder / f"{i}.png"
            )
    return root


def words(dataroot, folder, line):
    return ["--dataroot", str(dataroot), "--checkpoints_dir", str(folder), *TINY, *line.split()]


def run(dataroot, folder, line):
    assert train.main(words(dataroot, folder, line)) == 0
    return folder / "run"


def logged(folder):
    """(epoch, iters) of each line of losses."""
    text = (folder / "loss_log.txt").read_text()
    return [tuple(map(int, found)) for found in re.findall(r"\(epoch: (\d+), iters: (\d+),", text)]


def losses(folder):
    return [
        line.split(") ")[1]
        for line in (folder / "loss_log.txt").read_text().splitlines()
        if line.startswith("(epoch")
    ]


def has(folder, name):
    return (folder / f"{name}_net_G.pth").is_file()


# option -> what is seen in the folder of a run of 7 images per epoch
SEEN = {
    "--n_epochs 1 --n_epochs_decay 0": lambda f: logged(f) == [(1, i) for i in range(1, 8)],
    "--max_dataset_size 2 --epoch_count 2": lambda f: logged(f) == [(2, 1), (2, 2)],
    "--batch_size 3 --print_freq 4": lambda f: (
        logged(f) == [(1, 3), (1, 6), (2, 3), (2, 6)]
    ),  # the first step, then crossed at 6, 9 and 12 of 12 images
    "--phase val": lambda f: logged(f) == [(1, 1), (1, 2), (2, 1), (2, 2)],
    "--dataset_mode aligned": lambda f: logged(f)[2:] == [(1, 3), (2, 1), (2, 2), (2, 3)],
    "--max_dataset_size 1 --n_epochs 3 --save_epoch_freq 2": lambda f: (
        [has(f, e) for e in "1234"] == [False, True, False, True]
    ),
    "--max_dataset_size 3 --save_by_iter --save_latest_freq 2": lambda f: (
        has(f, "iter_4") and has(f, "latest")
    ),
    "--max_dataset_size 1 --no_html": lambda f: not (f / "web").exists(),
    "--max_dataset_size 2 --update_html_freq 2": lambda f: (
        f / "web" / "images" / "epoch001_fake_B.png"
    ).is_file(),
    "--max_dataset_size 1 --suffix b": lambda f: has(f.parent / "run_b", "latest"),
    "--max_dataset_size 1 --lr_policy plateau --pool_size 2": lambda f: len(losses(f)) == 2,
}


@pytest.mark.parametrize("line", SEEN)
def test_seen_in_the_folder_of_a_run(line, dataroot, tmp_path):
    assert SEEN[line](run(dataroot, tmp_path, line))


def test_images_of_unequal_size_in_a_step_are_named(tmp_path, capsys):
    for folder, width in [("trainA", 40), ("trainB", 48)]:
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((32, width, 3), 99, dtype=np.uint8)).save(tmp_path / folder / "0.png")
    assert train.main(words(tmp_path, tmp_path, "--preprocess none")) == 2
    assert "A has 40 x 32 pixels and the one of B beside it 48 x 32" in capsys.readouterr().err


def test_a_seed_gives_the_same_run_again(dataroot, tmp_path):
    line = "--max_dataset_size 3"
    first, again = (run(dataroot, tmp_path / place, line) for place in "ab")
    assert losses(first) == losses(again)
    assert losses(run(dataroot, tmp_path / "c", f"{line} --seed 5")) != losses(first)


def test_pretrained_weights_of_other_options_are_explained(dataroot, tmp_path, capsys):
    line = "--max_dataset_size 1 --n_epochs_decay 0"
    run(dataroot, tmp_path, line)
    argv = words(dataroot, tmp_path, f"{line} --pretrained_name run --netG resnet_6blocks --name second")
    assert train.main(argv) == 2
    assert "give those of its training, --netG resnet_4blocks" in capsys.readouterr().err


def test_another_run_is_not_written_over(dataroot, tmp_path, capsys):
    line = "--max_dataset_size 1"
    folder = run(dataroot, tmp_path, line)
    before = losses(folder)
    assert train.main(words(dataroot, tmp_path, f"{line} --lr 0.01 --seed 4")) == 2
    told = capsys.readouterr().err
    assert (
        "lr: 0.0002 there, 0.01 now" in told and "seed: 0 there, 4 now" in told and "--continue_train" in told
    )
    assert "ngf" not in told and losses(folder) == before
    run(dataroot, tmp_path, f"{line} --lr 0.01 --seed 4 --overwrite")
    assert len(losses(folder)) == 2 and losses(folder) != before


def test_a_dry_run_tells_all_and_writes_nothing(dataroot, tmp_path, capsys):
    assert train.main(words(dataroot, tmp_path / "runs", "--dry_run --QS_mode local")) == 0
    text = capsys.readouterr().out
    assert re.search(r"QS_mode: local +\(given\)", text) and "7 images A, 5 images B; 7 steps" in text
    assert len(re.findall(r"net[GDF]: \d\.\d+ M parameters", text)) == 3
    assert not (tmp_path / "runs").exists()
