"""FSeSim and LSeSim: released steps, what a step computes once, views, runs, refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from golden import load_baseline, under
from PIL import Image
from textbook import load_before, run_steps
from training_process import TrainingProcess, losses, make_images, ranks_env

import test as translation
import train
from models import create_model, patch_sampler, sesim_model
from models.inference import load_generator
from models.vgg import VGG16_URL, VGG16Features, draw_weights
from options.train_options import TrainOptions
from scripts import export

NARROW = (4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 24, 24, 24, "M", 24, 24, 24)
TINY = "--model sesim --vgg_weights random --gpu_ids -1 --ngf 4 --ndf 4 --patch_nums 24 --netG resnet_4blocks"
LEARNED = "--learned_attn --patch_size 3"


def load_narrow(weights, layers, device) -> VGG16Features:
    """In place of `load_vgg16`: VGG-16 of a few channels, as the released numbers were made with."""
    network = VGG16Features(layers, NARROW).requires_grad_(False)
    draw_weights(network)
    return network.to(device)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(sesim_model, "load_vgg16", load_narrow)


def model_of(*lines: str):
    torch.manual_seed(0)
    return create_model(TrainOptions().parse(" ".join([TINY, *lines]).split()))


def images(batch: int = 1, size: tuple[int, int] = (32, 48), seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(batch, 3, *size, generator=generator) * 2 - 1 for name in "AB"}


def step(model, batch) -> None:
    model.set_input(batch)
    model.optimize_parameters()


GOLDEN = {
    "fsesim_step": "--patch_nums 256 --patch_size 64",
    "lsesim_step": "--learned_attn --augment --patch_nums 20 --patch_size 6",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_two_steps_are_the_released_codes(float64, name):
    """Every loss, image and gradient, and the translation after both updates."""
    golden = load_baseline(name)
    model = model_of(GOLDEN[name], "--ngf 3 --netG resnet_9blocks --netD n_layers --n_layers_D 2")
    load_before(model, golden)
    model.vgg.load_state_dict(under(golden, "vgg."))
    views, updates = (("A", "B", "A_aug", "B_aug"), "FG") if model.augments else ("AB", "G")
    batches = [{view: golden[f"step{number}.{view}"] for view in views} for number in (1, 2)]
    locations = [
        [golden[f"step{number}.ids_{update}_layer{layer}"] for update in updates for layer in (4, 7, 9)]
        for number in (1, 2)
    ]
    for number, (found, gradients) in enumerate(run_steps(model, model, batches, locations), 1):
        expected = {loss: value.item() for loss, value in under(golden, f"step{number}.loss_").items()}
        assert found == pytest.approx(expected, rel=1e-5)
        if number == 1:
            for key, expected in under(golden, "grad1.").items():
                largest = max(g.abs().max().item() for k, g in gradients.items() if k[0] == key[0])
                torch.testing.assert_close(gradients[key], expected, rtol=1e-5, atol=1e-6 * largest)
        expected = golden[f"step{number}.fake_B"]
        torch.testing.assert_close(model.results["fake_B"], expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        translated = model.netG(golden["step1.A"])
    torch.testing.assert_close(translated, golden["final.fake_B_of_step1_A"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("line, real", [("", 1), (f"{LEARNED} --augment false", 2), (LEARNED, 4)])
def test_each_image_goes_through_vgg_once(line, real):
    """The translation alone with gradient; A, and in LSeSim B and both views, in one pass without."""
    model, passes = model_of(line), []
    model.vgg.register_forward_hook(lambda _, args, out: passes.append((len(args[0]), out[0].requires_grad)))
    step(model, images(2))
    assert passes == [(2, True), (2 * real, False)]


def test_queries_are_drawn_for_every_layer_and_shared_by_all_sides(monkeypatch):
    drawn = []

    def draw(num_locations, num_patches, device):
        drawn.append((num_locations, num_patches))
        return torch.arange(num_locations)[:num_patches]

    monkeypatch.setattr(patch_sampler, "random_locations", draw)
    step(model_of(LEARNED, "--attn_layers 4,7"), images())
    assert drawn == [(96, 24), (24, 24)] * 2  # of F's update, then of G's
    drawn.clear()
    step(model_of("--patch_nums 0 --use_norm --loss_mode l1"), images())
    assert not drawn, "all positions are compared"


def test_views_are_the_images_in_other_colours():
    """Drawn anew in each step, from a state that a resume restores."""
    model, views = model_of(LEARNED), []
    state = torch.get_rng_state()
    for again in (True, True, False):
        if again:
            torch.set_rng_state(state)
        model.set_input(images(2))
        views.append(model.batch["A_aug"])
    assert views[0].shape == (2, 3, 32, 48) and not torch.equal(views[0], model.batch["A"])
    assert torch.equal(views[0], views[1]) and not torch.equal(views[1], views[2])


# What is typed -> what the message says.
REFUSALS = {
    "--vgg_weights nowhere.pth": f"--vgg_weights: no file nowhere.pth .*{re.escape(VGG16_URL)}",
    "--attn_layers 4,13": "--attn_layers 13: VGG-16 has ReLUs 0 to 12",
    "--input_nc 1 --output_nc 1": "VGG-16 takes RGB images",
    "--attn_layers 12 --crop_size 28 --netD pixel": "--crop_size 28 cannot be used.* at least 32 pixels",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_refused_at_once_with_status_2(line, capsys):
    with pytest.raises(SystemExit) as exit:
        model_of(line)
    assert exit.value.code == 2
    assert re.search(REFUSALS[line], capsys.readouterr().err)


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    """Three images of A and two of B, 40 x 36 pixels, for training and for testing."""
    root, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    for folder, count in {"trainA": 3, "trainB": 2, "testA": 3, "testB": 2}.items():
        (root / folder).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    return root


def words(dataroot, folder, *lines: str) -> list[str]:
    course = "--name run --display_id 0 --num_threads 0 --n_epochs 1 --n_epochs_decay 1 --print_freq 1"
    sizes = "--load_size 36 --crop_size 32"
    line = " ".join([TINY, course, sizes, *lines])
    return ["--dataroot", str(dataroot), "--checkpoints_dir", str(folder), *line.split()]


@pytest.mark.parametrize("line", ["", LEARNED])
def test_a_whole_run_trains_translates_and_exports(dataroot, tmp_path, capsys, line):
    """No command after the training needs VGG's file."""
    assert train.main(words(dataroot, tmp_path, line)) == 0
    log = (tmp_path / "run" / "loss_log.txt").read_text()
    assert log.count("(epoch") == 6 and "G_s:" in log and ("spatial:" in log) == bool(line)
    assert (tmp_path / "run" / "web" / "images" / "epoch001_fake_B.png").is_file()
    place = ["--name", "run", "--checkpoints_dir", str(tmp_path)]
    results = ["--results_dir", str(tmp_path / "results"), "--gpu_ids", "-1", "--num_threads", "0"]
    assert translation.main([*place, *results]) == 0
    assert "translated 3 of 3 images" in capsys.readouterr().out
    picture = Image.fromarray(np.full((41, 53, 3), 99, np.uint8))
    assert load_generator("run", tmp_path, device="cpu")(picture).size == (53, 41)
    if line:  # G is the same network in both
        path = tmp_path / "run.pt2"
        assert export.main([*place, "--format", "torch_export", "--output", str(path)]) == 0
        assert path.is_file()


def use_narrow() -> None:
    sesim_model.load_vgg16 = load_narrow


def test_two_processes_train_as_one(tmp_path):
    data = make_images(tmp_path / "images", 6, 5)
    # translations that vary: maps of a flat image are rounding alone
    line = f"{LEARNED} --deterministic --no_html --pool_size 0 --load_size 34 --init_gain 1"
    runs = {name: tmp_path / name for name in ("two", "one")}
    for folder in runs.values():
        folder.mkdir()
    two, one = words(data, runs["two"], line), words(data, runs["one"], line, "--batch_size 2")
    processes = [
        TrainingProcess(two, runs["two"] / f"{rank}.log", env, use_narrow)
        for rank, env in enumerate(ranks_env(2))
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert TrainingProcess(one, runs["one"] / "log", change=use_narrow).wait() == 0
    found, expected = losses(runs["two"]), losses(runs["one"])
    assert len(found) == len(expected) == 6
    assert found[0] == pytest.approx(expected[0], rel=3e-5)
    for found_step, expected_step in zip(found, expected, strict=True):  # Adam amplifies rounding
        assert found_step == pytest.approx(expected_step, rel=1e-2)
