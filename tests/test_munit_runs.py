"""MUNIT by train.py and test.py: a run's files, styles, directions, released files, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from trained_run import draw, picture

import test as translation
import train
from models.inference import load_generator
from models.munit_networks import StyledTranslator
from util.errors import UserError
from util.image_files import open_rgb
from util.weight_files import read_tensors

TINY = (
    "--model munit --gpu_ids -1 --display_id 0 --num_threads 0 --ngf 4 --ndf 2 --mlp_dim 8 --n_res 1 "
    "--n_layer 2 --num_scales 2 --load_size 36 --crop_size 32 --style_dim 3 --print_freq 1"
).split()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    for folder, count in {"trainA": 4, "trainB": 3, "testA": 3, "testB": 2}.items():
        for number in range(count):
            draw(root / folder / f"{folder[-1]}{number}.png", (44, 40), seed=len(folder) * number + count)
    return root


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """A run of 6 iterations."""
    folder = tmp_path_factory.mktemp("checkpoints")
    words = ["--dataroot", str(dataset), "--checkpoints_dir", str(folder), "--name", "run", *TINY]
    assert train.main([*words, "--n_iterations", "6", "--lr_decay_iters", "3"]) == 0
    return folder


@pytest.fixture
def command(runs, dataset, tmp_path):
    """Run test.py on this run with more words; returns its exit status."""
    base = f"--gpu_ids -1 --num_threads 0 --name run --checkpoints_dir {runs} --dataroot {dataset}"
    base += f" --results_dir {tmp_path / 'results'}"
    return lambda *words: translation.main([*base.split(), *map(str, words)])


@pytest.fixture
def translate(runs):
    return load_generator("run", runs, device="cpu")


def images_of(results, label, folder="test_latest") -> dict[str, Image.Image]:
    folder = results / "run" / folder / "images" / label
    return {path.name: open_rgb(path) for path in sorted(folder.glob("*.png"))}


def assert_alike(first, second) -> None:
    """Equal but for rounding to whole values."""
    assert np.abs(np.asarray(first).astype(int) - np.asarray(second)).max() <= 1


def test_one_style_for_the_whole_test_set_or_a_row_of_styles(command, translate, tmp_path):
    results = tmp_path / "results"
    assert command() == 0
    fakes, sources = images_of(results, "fake_B"), images_of(results, "real_A")
    assert list(fakes) == ["A0.png", "A1.png", "A2.png"]
    for name, fake in fakes.items():
        assert_alike(fake, translate(sources[name], style=0))
    assert command("--num_styles", 2, "--style_seed", 1) == 0
    assert not images_of(results, "fake_B")  # of the earlier call
    rows = [images_of(results, f"fake_B_style{number}") for number in range(2)]
    for style, fakes in zip(translate.draw_styles(2, seed=1), rows, strict=True):
        for name, fake in fakes.items():
            assert_alike(fake, translate(sources[name], style=style))
    assert not np.array_equal(rows[0]["A0.png"], rows[1]["A0.png"])
    page = (results / "run" / "test_latest" / "index.html").read_text()
    places = [page.index(f"./images/{of}/A0.png") for of in ("real_A", "fake_B_style0", "fake_B_style1")]
    assert places == sorted(places) and places[-1] < page.index("./images/real_A/A1.png")


def test_the_style_of_an_image(command, translate, dataset, tmp_path):
    example = dataset / "testB" / "B1.png"
    assert command("--style_image", example) == 0
    source = images_of(tmp_path / "results", "real_A")["A0.png"]
    scaled = Image.open(example).resize((35, 32), Image.Resampling.BICUBIC)
    expected = translate(source, style=scaled)
    assert_alike(images_of(tmp_path / "results", "fake_B")["A0.png"], expected)
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)[None] / 127.5 - 1
    pixels = pixels[:, :, :, [*range(35), 33]]  # to a multiple of 4, by reflection
    with torch.no_grad():
        style = translate.net.target.encode(pixels)[1].flatten()
    torch.testing.assert_close(translate.with_style(scaled).variant, style, rtol=1e-4, atol=1e-5)


def test_styles_of_the_python_api(translate):
    image = picture((40, 24))
    assert_alike(translate(image, style=7), translate(image, style=translate.draw_styles(1, seed=7)[0]))
    assert_alike(translate(image, style=[1.0, -2.0, 0.5]), translate.with_style([1.0, -2.0, 0.5])(image))
    assert_alike(translate(image), translate(image, style=0))  # with_style changes no translator
    for wrong in ([1.0, 2.0], [1.0, 2.0, float("nan")]):
        with pytest.raises(ValueError, match="3 finite numbers, a seed or an image"):
            translate(image, style=wrong)


def test_both_directions(command, runs, tmp_path):
    assert command("--direction", "BtoA") == 0
    there, back = (load_generator("run", runs, device="cpu", direction=to) for to in ("AtoB", "BtoA"))
    results = tmp_path / "results"
    fakes, sources = (images_of(results, label, "test_latest_BtoA") for label in ("fake_B", "real_A"))
    assert list(fakes) == ["B0.png", "B1.png"]
    for name, fake in fakes.items():
        assert_alike(fake, back(sources[name]))
    for net, source, target in ((there.net, "gen_a", "gen_b"), (back.net, "gen_b", "gen_a")):
        for part, name in ((net.source, source), (net.target, target)):
            saved = read_tensors(runs / "run" / f"latest_net_{name}.pth")
            assert all(torch.equal(part.state_dict()[key], value) for key, value in saved.items())


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_released_generators_load(runs, tmp_path, direction):
    """Both in one file, as MUNIT's released code saves them, with the unused buffers of AdaIN."""
    states = {}
    for part in "ab":
        state = states[part] = read_tensors(runs / "run" / f"latest_net_gen_{part}.pth")
        for key in [key for key in state if key.startswith("dec.model.0.") and key.endswith("conv.bias")]:
            norm = key.removesuffix("conv.bias") + "norm."
            state |= {f"{norm}running_{of}": torch.zeros_like(state[key]) for of in ("mean", "var")}
    torch.save(states, tmp_path / "gen_01000000.pt")
    image = picture((40, 32))
    expected = load_generator("run", runs, device="cpu", direction=direction)(image, style=4)
    found = load_generator(tmp_path / "gen_01000000.pt", device="cpu", direction=direction)
    assert isinstance(found.net, StyledTranslator) and found.multiple == 4
    assert_alike(found(image, style=4), expected)


def test_files_without_a_run_load_in_pairs(runs, tmp_path):
    for name in ("gen_a", "gen_b"):
        source = runs / "run" / f"latest_net_{name}.pth"
        (tmp_path / f"latest_net_{name}.pth").write_bytes(source.read_bytes())
    image = picture((40, 32))
    expected = load_generator("run", runs, device="cpu")(image)
    assert_alike(load_generator(tmp_path / "latest_net_gen_b.pth", device="cpu")(image), expected)
    assert_alike(load_generator(tmp_path.name, tmp_path.parent, device="cpu")(image), expected)
    (tmp_path / "latest_net_gen_a.pth").unlink()
    with pytest.raises(UserError, match="gen_a.pth"):
        load_generator(tmp_path / "latest_net_gen_b.pth", device="cpu")


def test_other_files_are_named(runs, tmp_path):
    discriminator = runs / "run" / "latest_net_dis_a.pth"
    with pytest.raises(UserError, match="no generator"):
        load_generator(discriminator)
    torch.save({part: read_tensors(discriminator) for part in "ab"}, tmp_path / "d.pt")
    with pytest.raises(UserError, match="no generator"):
        load_generator(tmp_path / "d.pt")
