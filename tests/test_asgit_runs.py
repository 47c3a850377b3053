"""ASGIT's runs: train.py and test.py, several processes, directions, pairs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from trained_run import draw, make_run
from training_process import TrainingProcess, in_float64, losses, make_images, ranks_env, state_of

import test as translation
import train

TINY = (
    "--gpu_ids -1 --display_id 0 --ngf 4 --ndf 4 --netG resnet_4blocks --load_size 34 --crop_size 32 "
    "--num_threads 0 --n_epochs 2 --n_epochs_decay 1 --print_freq 1 --name run --model asgit"
).split()
V2 = "--netD trainable_attn --attention_fusion alpha --attention_source discriminator".split()
CONFIGURATIONS = {"v1": [], "v2": V2, "v2_post_hoc": [*V2[2:], "--attention_fusion", "rmult"]}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_translating_a_test_set_needs_these_networks(tmp_path, name, direction):
    """v1 needs the generator alone, v2 the discriminator of the source too; nothing else is read."""
    trained = "BtoA" if name == "v2_post_hoc" else "AtoB"
    needed = {True: ["G_A", "D_B"], False: ["G_B", "D_A"]}[direction == trained][: 1 if name == "v1" else 2]
    words = ["--model", "asgit", *CONFIGURATIONS[name], "--direction", trained]
    folder = make_run(tmp_path, *words, networks="GD")
    for file in folder.glob("*.pth"):
        if not any(file.name.endswith(f"_net_{network}.pth") for network in needed):
            file.unlink()
    for number in range(2):
        for domain in "AB":
            draw(tmp_path / f"data/test{domain}/{number}.png", (40, 36), seed=number)
    words = f"--gpu_ids -1 --checkpoints_dir {tmp_path} --name run --dataroot {tmp_path}/data".split()
    words += ["--results_dir", str(tmp_path / "results"), "--direction", direction]
    assert translation.main(words) == 0
    ending = "" if direction == trained else f"_{direction}"
    images = tmp_path / "results" / "run" / f"test_latest{ending}" / "images"
    maps = [] if name == "v1" else ["attn_A"]
    assert sorted(path.name for path in images.iterdir()) == sorted(["real_A", "fake_B", "real_B", *maps])
    assert all(len(list(folder.glob("*.png"))) == 2 for folder in images.iterdir())
    if name != "v1":
        (folder / f"latest_net_{needed[1]}.pth").unlink()
        assert translation.main(words) == 2


def maps_of(folder, domain) -> list[dict]:
    """The memory of each process, as saved."""
    saved = state_of(folder)["model"]["memories"][f"attention_{domain}"]
    return [memory["_extra_state"] for memory in saved]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_two_processes_train_as_one_and_remember_the_same(tmp_path):
    dataroot = make_images(tmp_path / "images", 6, 5)
    for name, envs in {"two": ranks_env(2), "one": [{}]}.items():
        (tmp_path / name).mkdir()
        argv = ["--dataroot", str(dataroot), "--checkpoints_dir", str(tmp_path / name), *TINY, "--no_html"]
        argv += ["--deterministic", "--batch_size", str(2 // len(envs))]
        logs = [tmp_path / name / f"{rank}.log" for rank in range(len(envs))]
        started = [TrainingProcess(argv, log, env, in_float64) for log, env in zip(logs, envs, strict=True)]
        assert [process.wait() for process in started] == [0] * len(envs)
    for found, expected in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
    for domain, count in {"A": 6, "B": 5}.items():
        (one,), twins = (maps_of(tmp_path / name, domain) for name in ("one", "two"))
        for two in twins:
            assert two["paths"] == one["paths"] and len(one["paths"]) <= count
            assert torch.equal(two["windows"], one["windows"])
            torch.testing.assert_close(two["maps"], one["maps"], rtol=0, atol=1e-12)


def test_supervised_runs_on_pairs(tmp_path):
    for phase, count in {"train": 2, "test": 1}.items():
        (tmp_path / "pairs" / phase).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((2 * 143, 143), 60).save(tmp_path / "pairs" / phase / f"{number}.png")
    words = ["--dataroot", str(tmp_path / "pairs"), "--checkpoints_dir", str(tmp_path), "--name", "run"]
    words += ["--gpu_ids", "-1", "--num_threads", "0"]
    more = "--model asgit_supervised --ngf 2 --ndf 2 --n_epochs 1 --n_epochs_decay 0 --display_id 0"
    assert train.main([*words, *more.split()]) == 0
    (memory,) = maps_of(tmp_path, "A")
    assert [Path(path).name for path in memory["paths"]] == ["0.png", "1.png"]
    assert json.loads((tmp_path / "run" / "train_opt.json").read_text())["eval"] is False
    for name in ("one", "two"):
        assert translation.main([*words, "--results_dir", str(tmp_path / name)]) == 0
    pictures = [tmp_path / name / "run/test_latest/images/fake_B/0.png" for name in ("one", "two")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes(), "dropout is drawn from --seed"
