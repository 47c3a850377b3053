"""ASGIT's runs: train.py and test.py, several processes, directions, export, captured and fast steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from taped_graph import TapedCapture
from training_process import TrainingProcess, in_float64, losses, make_images, ranks_env, state_of

import test as translation
import train
from models import create_model
from models.speed import step_graph
from options.train_options import TrainOptions
from util.errors import UserError

TINY = (
    "--gpu_ids -1 --display_id 0 --ngf 4 --ndf 4 --netG resnet_4blocks --load_size 34 --crop_size 32 "
    "--num_threads 0 --n_epochs 2 --n_epochs_decay 1 --print_freq 1 --update_html_freq 3 --display_freq 1 "
    "--name run --model asgit"
).split()
V2 = "--netD trainable_attn --attention_fusion alpha --attention_source discriminator".split()
CONFIGURATIONS = {"v1": [], "v2": V2, "v2_post_hoc": [*V2[2:], "--attention_fusion", "rmult"]}


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    root = make_images(tmp_path_factory.mktemp("images"), 6, 5)
    for domain in "AB":
        (root / f"test{domain}").mkdir()
        for path in sorted((root / f"train{domain}").glob("[01].png")):
            (root / f"test{domain}" / path.name).write_bytes(path.read_bytes())
    return root


@pytest.fixture(scope="module")
def runs(dataroot, tmp_path_factory):
    """A finished run of each configuration, by name."""
    root = tmp_path_factory.mktemp("runs")
    for name, words in CONFIGURATIONS.items():
        argv = ["--dataroot", str(dataroot), "--checkpoints_dir", str(root), *TINY, *words, "--name", name]
        assert train.main([*argv, "--direction", "BtoA" if name == "v2_post_hoc" else "AtoB"]) == 0
    return root


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_translating_a_test_set_needs_these_networks(runs, tmp_path, name, direction):
    """v1 needs the generator alone, v2 the discriminator of the source too; nothing else is read."""
    trained = "BtoA" if name == "v2_post_hoc" else "AtoB"
    needed = {True: ["G_A", "D_B"], False: ["G_B", "D_A"]}[direction == trained][: 1 if name == "v1" else 2]
    folder = tmp_path / "checkpoints" / name
    folder.mkdir(parents=True)
    for file in ["train_opt.json", *(f"latest_net_{network}.pth" for network in needed)]:
        (folder / file).write_bytes((runs / name / file).read_bytes())
    words = ["--gpu_ids", "-1", "--checkpoints_dir", str(folder.parent), "--name", name]
    words += ["--results_dir", str(tmp_path / "results"), "--direction", direction]
    assert translation.main(words) == 0
    ending = "" if direction == trained else f"_{direction}"
    images = tmp_path / "results" / name / f"test_latest{ending}" / "images"
    maps = [] if name == "v1" else ["attn_A"]
    assert sorted(path.name for path in images.iterdir()) == sorted(["real_A", "fake_B", "real_B", *maps])
    assert all(len(list(folder.glob("*.png"))) == 2 for folder in images.iterdir())
    if name != "v1":
        (folder / f"latest_net_{needed[1]}.pth").unlink()
        assert translation.main(words) == 2


def test_photographs_of_any_size(runs, tmp_path):
    Image.effect_noise((21, 17), 60).save(tmp_path / "small.png")  # smaller than a discriminator takes
    words = ["--gpu_ids", "-1", "--checkpoints_dir", str(runs), "--results_dir", str(tmp_path)]
    for name in CONFIGURATIONS:
        assert translation.main([*words, "--name", name, "--input", str(tmp_path / "small.png")]) == 0
        assert Image.open(tmp_path / name / "small.png").size == (21, 17)


# ---- several processes


def start(dataroot, checkpoints, processes, *more):
    checkpoints.mkdir(exist_ok=True)
    words = [*TINY, "--no_html", "--deterministic", *more]
    argv = ["--dataroot", str(dataroot), "--checkpoints_dir", str(checkpoints), *words]
    envs = ranks_env(processes) if processes > 1 else [{}]
    argv += ["--batch_size", str(2 // processes)]
    logs = [checkpoints / f"{rank}.log" for rank in range(processes)]
    started = [TrainingProcess(argv, log, env, in_float64) for log, env in zip(logs, envs, strict=True)]
    return [process.wait() for process in started], (checkpoints / "0.log").read_text()


def maps_of(folder, domain) -> list[dict]:
    """The memory of each process, as saved."""
    saved = state_of(folder)["model"]["memories"][f"attention_{domain}"]
    return [memory["_extra_state"] for memory in saved]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_two_processes_train_as_one_and_remember_the_same(dataroot, tmp_path):
    assert start(dataroot, tmp_path / "two", 2)[0] == [0, 0]
    assert start(dataroot, tmp_path / "one", 1)[0] == [0]
    for found, expected in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
    for domain, count in {"A": 6, "B": 5}.items():
        (one,), twins = (maps_of(tmp_path / name, domain) for name in ("one", "two"))
        for two in twins:
            assert two["paths"] == one["paths"] and len(one["paths"]) <= count
            assert torch.equal(two["windows"], one["windows"])
            torch.testing.assert_close(two["maps"], one["maps"], rtol=0, atol=1e-12)


# ---- steps


def model_of(*words):
    torch.manual_seed(0)
    return create_model(TrainOptions().parse([*TINY, *words]))


def batch(seed=0, size=(32, 32), **more):
    generator = torch.Generator().manual_seed(seed)
    images = {domain: torch.rand(1, 3, *size, generator=generator) * 2 - 1 for domain in "AB"}
    return {**images, "A_paths": ["a/0.png"], "B_paths": ["b/0.png"], **more}


@pytest.mark.parametrize("old", [False, True])
def test_maps_are_resumed(old):
    """Also those of runs that were saved with the maps beside the memories."""
    saved, model = model_of(), model_of()
    saved.set_input(batch())
    saved.optimize_parameters()
    state = saved.training_state()
    if old:
        state["attention"] = {
            domain: state["memories"].pop(f"attention_{domain}")[0]["_extra_state"] for domain in "AB"
        }
    model.load_training_state(state)
    for one in (saved, model):
        one.set_input(batch(A_windows=torch.tensor([[0.1, 0.2, 0.7, 0.8, 1.0]])))
    assert model.batch["A_attention"].min() < 1
    assert torch.equal(model.batch["A_attention"], saved.batch["A_attention"])


@pytest.mark.parametrize("words", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_captured_step_is_the_step(monkeypatch, float64, words):
    """The look-up and the storing of maps stay outside the graph."""
    assert type(model_of(*words)).capture_obstacle(model_of(*words).opt) is None
    captured, eager = model_of(*words), model_of(*words)
    graph = TapedCapture()
    monkeypatch.setattr(step_graph, "capture_graph", graph)
    captured.accelerator.captures = True
    for number in (0, 1, 0):
        for model in (captured, eager):
            torch.manual_seed(number)
            model.set_input(batch(number, A_windows=torch.tensor([[0.0, 0.1 * number, 0.9, 0.9, number]])))
            model.optimize_parameters()
        assert captured.get_current_losses() == eager.get_current_losses()
        visuals = captured.get_current_visuals()
        for name, image in eager.get_current_visuals().items():
            assert torch.equal(visuals[name], image), name
    assert len(graph.tapes) == 1
    for domain, memory in eager.memory.items():
        assert torch.equal(memory.maps, captured.memory[domain].maps)


REFUSED = {
    "--netD basic": "--netD basic does not say where it looks",
    "--netG unet_128 --crop_size 128 --load_size 128 --attention_stage F1": "this generator has F0$",
    "--crop_size 20 --load_size 20": "the discriminator at least 24 pixels",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_refused(words):
    options = TrainOptions()
    with pytest.raises(UserError, match=REFUSED[words]):
        options.resolve(options.parser.parse_given([*TINY, *words.split()]))


@pytest.mark.parametrize(
    "words, norms",
    {
        "": ("instance", "instance"),  # the supplement's
        "--attention_fusion none --netD basic": ("batch", "batch"),  # pix2pix's
        "--normG batch": ("batch", "instance"),
        "--attention_fusion none --normD instance": ("batch", "instance"),
    }.items(),
)
def test_supervised_norms(words, norms):
    opt = TrainOptions().parse(["--model", "asgit_supervised", "--gpu_ids", "-1", *words.split()])
    assert (opt.normG, opt.normD) == norms


def test_supervised_runs_on_pairs(tmp_path):
    for phase, count in {"train": 2, "test": 1}.items():
        (tmp_path / "pairs" / phase).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((2 * 143, 143), 60).save(tmp_path / "pairs" / phase / f"{number}.png")
    words = ["--dataroot", str(tmp_path / "pairs"), "--checkpoints_dir", str(tmp_path), "--name", "run"]
    more = "--model asgit_supervised --ngf 2 --ndf 2 --n_epochs 1 --n_epochs_decay 0 --display_id 0"
    more += " --num_threads 0"
    assert train.main([*words, "--gpu_ids", "-1", *more.split()]) == 0
    (memory,) = maps_of(tmp_path, "A")
    assert [Path(path).name for path in memory["paths"]] == ["0.png", "1.png"]
    assert json.loads((tmp_path / "run" / "train_opt.json").read_text())["eval"] is False
    results = [[*words, "--gpu_ids", "-1", "--results_dir", str(tmp_path / name)] for name in ("one", "two")]
    assert [translation.main(argv) for argv in results] == [0, 0]
    pictures = [tmp_path / name / "run/test_latest/images/fake_B/0.png" for name in ("one", "two")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes(), "dropout is drawn from --seed"
