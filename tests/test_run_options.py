"""What each option of data, files and schedule does to real, tiny runs of train.py."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

import train
from data import create_loader
from options.train_options import TrainOptions
from util.errors import UserError

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
    for folder, count, width in [
        ("trainA", 7, 48),
        ("trainB", 5, 48),
        ("valA", 2, 48),
        ("valB", 2, 48),
        ("train", 3, 96),
    ]:
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


def weights(folder, network="G"):
    return torch.load(folder / f"latest_net_{network}.pth", weights_only=True)


# option -> what is seen in the folder of a run of 7 images per epoch
SEEN = {
    "--n_epochs 1 --n_epochs_decay 0": lambda f: logged(f) == [(1, i) for i in range(1, 8)],
    "--max_dataset_size 2": lambda f: logged(f) == [(1, 1), (1, 2), (2, 1), (2, 2)],
    "--max_dataset_size 2 --epoch_count 2": lambda f: logged(f) == [(2, 1), (2, 2)],
    "--batch_size 3 --print_freq 4": lambda f: (
        logged(f) == [(1, 3), (1, 6), (2, 3), (2, 6)]
    ),  # the first step, then crossed at 6, 9 and 12 of 12 images
    "--batch_size 2 --print_freq 1": lambda f: logged(f) == [(e, i) for e in (1, 2) for i in (2, 4, 6)],
    "--phase val": lambda f: logged(f) == [(1, 1), (1, 2), (2, 1), (2, 2)],
    "--dataset_mode aligned": lambda f: logged(f)[2:] == [(1, 3), (2, 1), (2, 2), (2, 3)],
    "--max_dataset_size 1 --n_epochs 3 --save_epoch_freq 2": lambda f: (
        [has(f, e) for e in "1234"] == [False, True, False, True]
    ),
    "--max_dataset_size 3 --save_by_iter --save_latest_freq 2": lambda f: (
        has(f, "iter_4") and has(f, "latest")
    ),
    "--max_dataset_size 1": lambda f: (f / "web" / "index.html").is_file() and has(f, "latest"),
    "--max_dataset_size 1 --no_html": lambda f: not (f / "web").exists(),
    "--max_dataset_size 2 --update_html_freq 2": lambda f: (
        f / "web" / "images" / "epoch001_fake_B.png"
    ).is_file(),
    "--max_dataset_size 1 --suffix b": lambda f: has(f.parent / "run_b", "latest"),
    "--max_dataset_size 1 --netD pixel --gan_mode wgangp": lambda f: len(losses(f)) == 2,
    "--max_dataset_size 1 --lr_policy plateau --pool_size 2": lambda f: len(losses(f)) == 2,
    "--max_dataset_size 1 --input_nc 3 --output_nc 1 --lambda_NCE 0": lambda f: len(losses(f)) == 2,
    "--max_dataset_size 1 --lr_policy cosine --no_dropout false --normG batch": lambda f: len(losses(f)) == 2,
}


@pytest.mark.parametrize("line", SEEN)
def test_seen_in_the_folder_of_a_run(line, dataroot, tmp_path):
    assert SEEN[line](run(dataroot, tmp_path, line))


def batches(dataroot, tmp_path, line, epoch=1):
    return list(create_loader(TrainOptions().parse(words(dataroot, tmp_path, line)), "cpu").epoch(epoch))


# --preprocess -> (height, width) of what an image of 40 x 48 becomes
PREPROCESS = {
    "resize_and_crop": (32, 32),
    "crop": (32, 32),
    "scale_width": (32, 40),  # 33 high, and the nearest multiple of 4
    "scale_width_and_crop": (32, 32),
    "scale_shortside_and_crop": (32, 32),
    "none": (40, 48),
}


@pytest.mark.parametrize("mode", PREPROCESS)
def test_every_preprocess_mode_trains(mode, dataroot, tmp_path):
    line = f"--preprocess {mode} --max_dataset_size 1"
    assert batches(dataroot, tmp_path, line)[0]["A"].shape == (1, 3, *PREPROCESS[mode])
    run(dataroot, tmp_path, line)


# option -> what is seen in the seven batches of the first epoch
BATCHES = {
    "--direction AtoB": lambda b: all(
        "trainA" in batch["A_paths"][0] and "trainB" in batch["B_paths"][0] for batch in b
    ),
    "--direction BtoA": lambda b: all(
        "trainB" in batch["A_paths"][0] and "trainA" in batch["B_paths"][0] for batch in b
    ),
    "--serial_batches": lambda b: (
        [batch["A_paths"][0][-5] for batch in b] == list("0123456")
        and [batch["B_paths"][0][-5] for batch in b] == list("0123401")
    ),
    "--serial_batches false": lambda b: [batch["A_paths"][0][-5] for batch in b] != list("0123456"),
    "--input_nc 1 --output_nc 1": lambda b: b[0]["A"].shape == b[0]["B"].shape == (1, 1, 32, 32),
    "--load_size 64 --crop_size 48": lambda b: b[0]["A"].shape == (1, 3, 48, 48),
    "--dataset_mode aligned": lambda b: (
        len(b) == 3 and all(batch["A_paths"] == batch["B_paths"] for batch in b)
    ),
    "--batch_size 3": lambda b: [len(batch["A"]) for batch in b] == [3, 3],
}


@pytest.mark.parametrize("line", BATCHES)
def test_seen_in_the_batches(line, dataroot, tmp_path):
    assert BATCHES[line](batches(dataroot, tmp_path, line))


def test_mirroring_can_be_left_out(dataroot, tmp_path):
    line = "--load_size 32 --serial_batches"  # nothing else is random
    first, second = (batches(dataroot, tmp_path, f"{line} --no_flip --seed {seed}") for seed in (1, 2))
    assert all(torch.equal(a["A"], b["A"]) for a, b in zip(first, second, strict=True))
    mirrored = [
        torch.equal(a["A"], b["A"].flip(3))
        for a, b in zip(first, batches(dataroot, tmp_path, line), strict=True)
    ]
    assert True in mirrored and False in mirrored


def test_a_single_folder_is_for_test_alone(dataroot, tmp_path):
    with pytest.raises(UserError, match="single has no domain B to train towards"):
        batches(dataroot, tmp_path, "--dataset_mode single")


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
    argv = [
        *words(dataroot, tmp_path, f"{line} --pretrained_name run --netG resnet_6blocks"),
        "--name",
        "second",
    ]
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
    assert (
        re.search(r"QS_mode: local +\(given\)", text)
        and "7 images A, 5 images B; 7 steps per epoch on cpu" in text
    )
    assert len(re.findall(r"net[GDF]: \d\.\d+ M parameters", text)) == 3
    assert not (tmp_path / "runs").exists()
    assert train.main(words(dataroot, tmp_path / "runs", "--dry_run --verbose")) == 0
    assert "ReflectionPad2d" in capsys.readouterr().out
