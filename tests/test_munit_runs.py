"""MUNIT by train.py and test.py: a run's files, styles, directions, released files, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from trained_run import draw, picture

import test as translation
import train
from models.inference import load_generator
from models.munit_networks import StyledTranslator
from models.weights import load_weights
from options.test_options import TestOptions
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
    base = f"--gpu_ids -1 --num_threads 0 --name run --checkpoints_dir {runs} --dataroot {dataset}".split()
    base += ["--results_dir", str(tmp_path / "results")]

    def run(*words: object) -> int:
        try:
            return translation.main([*base, *map(str, words)])
        except SystemExit as exit:
            return exit.code

    return run


@pytest.fixture
def translate(runs):
    return load_generator("run", runs, device="cpu")


def images_of(results, label, folder="test_latest") -> dict[str, Image.Image]:
    folder = results / "run" / folder / "images" / label
    return {path.name: open_rgb(path) for path in sorted(folder.glob("*.png"))}


def assert_alike(first, second) -> None:
    """Equal but for rounding to whole values."""
    assert np.abs(np.asarray(first).astype(int) - np.asarray(second)).max() <= 1


# Training


def test_the_files_and_the_log_of_a_run(runs):
    folder = runs / "run"
    names = ["gen_a", "gen_b", "dis_a", "dis_b"]
    assert all((folder / f"latest_net_{name}.pth").is_file() for name in names)
    state = torch.load(folder / "latest_state.pth", weights_only=True)
    progress = state["progress"]
    assert (progress["steps"], progress["epoch"], progress["position"]) == (6, 2, 2)
    assert state["model"]["optimizers"]["gen_a"]["param_groups"][0]["weight_decay"] == 1e-4
    log = (folder / "loss_log.txt").read_text()
    lines = [line for line in log.splitlines() if line.startswith("(epoch")]
    assert len(lines) == 6 and all("gen_cycrecon_x_b: " in line and "dis_total: " in line for line in lines)
    shown = [path.name for path in (folder / "web" / "images").iterdir()]
    labels = ("real_A", "recon_A", "fake_B", "cycle_A", "real_B", "recon_B", "fake_A", "cycle_B")
    assert all(f"epoch002_{label}.png" in shown for label in labels)


# Styles


def test_one_style_for_the_whole_test_set(command, translate, dataset, tmp_path):
    assert command() == 0
    fakes = images_of(tmp_path / "results", "fake_B")
    assert list(fakes) == ["A0.png", "A1.png", "A2.png"]
    for name, fake in fakes.items():
        source = images_of(tmp_path / "results", "real_A")[name]
        assert_alike(fake, translate(source))  # without style: that of seed 0
        assert_alike(fake, translate(source, style=0))
    assert command("--style_seed", 5) == 0
    assert not np.array_equal(images_of(tmp_path / "results", "fake_B")["A0.png"], fakes["A0.png"])


def test_a_row_of_styles_on_the_results_page(command, translate, tmp_path):
    results = tmp_path / "results"
    assert command() == 0
    assert command("--num_styles", 3, "--style_seed", 1) == 0
    assert not images_of(results, "fake_B")  # of the earlier call
    styles = translate.draw_styles(3, seed=1)
    rows = [images_of(results, f"fake_B_style{number}") for number in range(3)]
    for style, fakes in zip(styles, rows, strict=True):
        assert len(fakes) == 3
        for name, fake in fakes.items():
            source = images_of(results, "real_A")[name]
            assert_alike(fake, translate(source, style=style))
    assert not np.array_equal(rows[0]["A0.png"], rows[1]["A0.png"])
    page = (results / "run" / "test_latest" / "index.html").read_text()
    first_row = [
        page.index(f"./images/{label}/A0.png") for label in ("real_A", "fake_B_style0", "fake_B_style2")
    ]
    assert first_row == sorted(first_row) and first_row[-1] < page.index("./images/real_A/A1.png")
    assert command("--num_styles", 2, "--style_seed", 1) == 0
    assert not images_of(results, "fake_B_style2")
    assert_alike(images_of(results, "fake_B_style1")["A0.png"], rows[1]["A0.png"])  # fewer, but the same


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


def test_photographs_in_several_styles(command, translate, tmp_path, capsys):
    draw(tmp_path / "in" / "a.png", (50, 33), mode="RGBA")
    draw(tmp_path / "in" / "deep" / "b.png", (17, 64), seed=3)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    words = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--num_styles", 2]
    assert command(*words) == 1
    told = capsys.readouterr()
    assert told.err.count("failed: ") == 1 and "translated 2 of 3 images" in told.out
    styles = translate.draw_styles(2, seed=0)
    for name, size in {"a": (50, 33), "deep/b": (17, 64)}.items():
        for number, style in enumerate(styles):
            result = Image.open(tmp_path / "out" / f"{name}_style{number}.png")
            assert result.size == size
            source = Image.open(tmp_path / "in" / f"{name}.png")
            assert_alike(result, translate(source, style=style))


def test_styles_of_the_python_api(translate):
    image = picture((40, 24))
    assert translate(image).size == (40, 24)
    assert_alike(translate(image, style=7), translate(image, style=translate.draw_styles(1, seed=7)[0]))
    assert_alike(translate(image, style=[1.0, -2.0, 0.5]), translate.with_style([1.0, -2.0, 0.5])(image))
    assert not np.array_equal(translate(image, style=1), translate(image, style=2))
    assert_alike(translate(image), translate(image, style=0))  # with_style changes no translator
    for wrong in ([1.0, 2.0], [1.0, 2.0, float("nan")]):
        with pytest.raises(ValueError, match="3 finite numbers, a seed or an image"):
            translate(image, style=wrong)


def test_wrong_styles_are_refused_with_status_2(command, dataset, tmp_path, capsys):
    for words, message in {
        ("--num_styles", 0): "at least 1",
        ("--num_styles", 2, "--style_image", dataset / "testB" / "B0.png"): "leave one of them out",
        ("--style_seed", 2, "--style_image", dataset / "testB" / "B0.png"): "leave one of them out",
        ("--style_image", tmp_path / "none.png"): "none.png",
        ("--style_dim", 4): "give those of its training, --style_dim 3",
        ("--n_res", 2): "give those of its training, --n_res 1",
    }.items():
        assert command(*words) == 2
        assert re.search(message, capsys.readouterr().err), words
    with pytest.raises(SystemExit):
        TestOptions().parse(["--model", "cut", "--num_styles", "2"])
    assert "--num_styles has no effect with --model cut" in capsys.readouterr().err


# Directions


def test_both_directions(command, runs, dataset, tmp_path):
    assert command("--direction", "BtoA") == 0
    back = load_generator("run", runs, device="cpu", direction="BtoA")
    fakes, sources = (
        images_of(tmp_path / "results", label, "test_latest_BtoA") for label in ("fake_B", "real_A")
    )
    assert list(fakes) == ["B0.png", "B1.png"]
    for name, fake in fakes.items():
        assert_alike(fake, back(sources[name]))
    there = load_generator("run", runs, device="cpu")
    for net, source, target in ((there.net, "gen_a", "gen_b"), (back.net, "gen_b", "gen_a")):
        for part, name in ((net.source, source), (net.target, target)):
            saved = read_tensors(runs / "run" / f"latest_net_{name}.pth")
            assert all(torch.equal(part.state_dict()[key], value) for key, value in saved.items())


# Released files


@pytest.fixture
def released(runs, tmp_path):
    """Both generators in one file, as MUNIT's released code saves them, with the unused buffers of AdaIN."""
    states = {}
    for part in "ab":
        states[part] = read_tensors(runs / "run" / f"latest_net_gen_{part}.pth")
        for key in [
            key for key in states[part] if key.startswith("dec.model.0.") and key.endswith("conv.bias")
        ]:
            size = len(states[part][key])
            norm = key.removesuffix("conv.bias") + "norm."
            states[part] |= {f"{norm}running_mean": torch.zeros(size), f"{norm}running_var": torch.ones(size)}
    path = tmp_path / "gen_01000000.pt"
    torch.save(states, path)
    return path


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_released_generators_load(released, runs, direction):
    image = picture((40, 32))
    expected = load_generator("run", runs, device="cpu", direction=direction)(image, style=4)
    found = load_generator(released, device="cpu", direction=direction)
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
    draw(tmp_path / "a.png", (40, 32))
    words = f"--name {tmp_path.name} --checkpoints_dir {tmp_path.parent} --gpu_ids -1 --num_styles 2"
    words += f" --input {tmp_path / 'a.png'} --output {tmp_path / 'b.png'}"
    assert translation.main(words.split()) == 0
    assert_alike(Image.open(tmp_path / "b_style0.png"), expected)
    (tmp_path / "latest_net_gen_a.pth").unlink()
    with pytest.raises(FileNotFoundError, match="gen_a.pth"):
        load_generator(tmp_path / "latest_net_gen_b.pth", device="cpu")


def test_other_files_are_named(released, runs, tmp_path):
    with pytest.raises(UserError, match="not the bare state dict of one network"):
        read_tensors(released)
    with pytest.raises(UserError, match="a discriminator of MUNIT, not a generator"):
        load_generator(runs / "run" / "latest_net_dis_a.pth")
    (tmp_path / "c.pt").write_bytes((runs / "run" / "latest_net_dis_a.pth").read_bytes())
    with pytest.raises(UserError, match="not the bare state dict"):
        load_generator(tmp_path / "c.pt")
    torch.save(
        {part: read_tensors(runs / "run" / "latest_net_dis_a.pth") for part in "ab"}, tmp_path / "d.pt"
    )
    with pytest.raises(UserError, match="holds no generator of MUNIT"):
        load_generator(tmp_path / "d.pt")
    net = load_generator("run", runs, device="cpu").net.target
    with pytest.raises(
        UserError, match="a discriminator of MUNIT, but these options build a generator of MUNIT"
    ):
        load_weights(net, runs / "run" / "latest_net_dis_a.pth")
