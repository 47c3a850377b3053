"""Models in pretrained/: written in float16 by scripts/export.py, used by test.py, Python and the scripts."""

from __future__ import annotations

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from trained_run import draw, make_run, picture

import test as translation
from models import option_defaults, pretrained
from models.inference import load_generator
from models.munit_model import munit_generator
from models.munit_networks import StyledTranslator
from models.weights import read_weights, save_weights
from options.test_options import TestOptions
from scripts import export, visualize_queries
from scripts.evaluation.options import EvaluateOptions
from scripts.evaluation.sweep import weights_of
from util.errors import UserError
from util.translate.photo import read_photo


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    make_run(folder, *"--QS_mode local --num_patches 16 --qs_window 3 --normG batch".split(), name="zebras")
    return folder


@pytest.fixture(scope="module")
def house(runs, tmp_path_factory):
    """A folder pretrained/ with the model `zebras`, and one without options."""
    folder = tmp_path_factory.mktemp("pretrained")
    words = ["--name", "zebras", "--checkpoints_dir", str(runs), "--format", "pretrained"]
    assert export.main([*words, "--output", str(folder / "zebras.pth")]) == 0
    save_weights(load_generator("zebras", runs, device="cpu").net, folder / "bare.pth", torch.float16)
    return folder


@pytest.fixture(autouse=True)
def in_the_house(house, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", house)


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_it_is_half_the_size_and_translates_alike(runs, house):
    weights = read_weights(house / "zebras.pth")
    floats = [value.dtype for value in weights.values() if value.is_floating_point()]
    assert set(floats) == {torch.float16}
    half, whole = (path.stat().st_size for path in (house / "zebras.pth", runs / "zebras/latest_net_G.pth"))
    assert half < 0.75 * whole  # the archive's own parts are most of so small a file
    image = picture((37, 41))
    of_run = load_generator("zebras", runs, device="cpu")(image)
    for name in ("zebras", house / "zebras.pth", "bare"):
        assert abs(pixels(load_generator(name, device="cpu")(image)) - pixels(of_run)).max() <= 3


def test_its_options_are_those_that_build_and_translate(house):
    options = json.loads((house / "zebras.json").read_text())
    assert options["crop_size"] == 32 and options["num_patches"] == 16 and options["model"] == "qs"
    assert not {"dataroot", "checkpoints_dir", "gpu_ids", "name", "lr"} & options.keys()


def test_a_run_comes_before_a_pretrained_model_of_its_name(runs, house):
    assert pretrained.find_pretrained("zebras", runs) is None
    assert pretrained.find_pretrained("zebras", house) == house / "zebras.pth"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_test_py_translates_with_it(house, tmp_path, precision):
    source = tmp_path / "photo.png"
    draw(source, (50, 40))
    base = ["--input", str(source), "--gpu_ids", "-1", "--precision", precision]
    for name in ("zebras", str(house / "bare.pth")):
        assert (
            translation.main([*base, "--pretrained", name, "--output", str(tmp_path / f"{precision}.png")])
            == 0
        )
        written = pixels(read_photo(tmp_path / f"{precision}.png").pixels)
        expected = pixels(load_generator("zebras", device="cpu")(picture((50, 40))))
        assert abs(written - expected).max() <= (0 if precision == "fp32" else 40)


def test_results_carry_its_name_and_size(house):
    opt = TestOptions().parse(["--pretrained", "zebras"])
    assert (opt.name, opt.crop_size, opt.normG, opt.epoch) == ("zebras", 32, "batch", "latest")
    opt = TestOptions().parse(["--pretrained", str(house / "bare.pth")])
    assert (opt.name, opt.ngf, opt.normG) == ("bare", 4, "batch")


def test_the_judge_and_the_query_pages_take_it(runs, house):
    opt = EvaluateOptions().parse("--pretrained zebras --metrics swd".split())
    assert weights_of(opt, "latest") == house / "zebras.pth"
    opt = visualize_queries.parse(["--name", "zebras", "--input", "photo.png"])
    visualize_queries.take_selection_of_the_run(opt, load_generator("zebras", device="cpu").net)
    assert (opt.num_patches, opt.qs_window) == (16, 3)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--pretrained cats", "there is no pretrained model cats: there are bare, zebras"),
        ("--pretrained cats.pth", "there is no pretrained model cats.pth"),
        ("--pretrained zebras --name run", "--name names a run, and --pretrained a model instead"),
        ("--pretrained zebras --epoch 5", "--epoch names a run"),
        ("--pretrained zebras --ngf 8", "4 channels after its first convolution"),
        ("--name nowhere", "or translate with a model that is here: test.py --pretrained bare"),
    ],
)
def test_wrong_calls_are_named_with_status_2(words, message, tmp_path, capsys):
    draw(tmp_path / "photo.png")
    words = [
        *words.split(),
        "--input",
        str(tmp_path / "photo.png"),
        "--output",
        str(tmp_path),
        "--gpu_ids",
        "-1",
    ]
    try:
        status = translation.main([*words, "--output", str(tmp_path / "out")])
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and message in capsys.readouterr().err


def test_what_is_no_single_generator_or_no_pth_is_refused(runs, tmp_path, capsys):
    sizes = {"ngf": 4, "mlp_dim": 8, "n_res": 1, "n_downsample": 2, "style_dim": 3}
    opt = Namespace(**{**option_defaults("munit"), **sizes}, input_nc=3, output_nc=3)
    both = StyledTranslator(munit_generator(opt), munit_generator(opt))
    with pytest.raises(UserError, match="translates with two networks"):
        export.write_pretrained(both, {}, tmp_path / "x.pth")
    words = ["--name", "zebras", "--checkpoints_dir", str(runs), "--format", "pretrained"]
    assert export.main([*words, "--output", str(tmp_path / "x.pt")]) == 2
    assert "does not end in .pth" in capsys.readouterr().err


def test_damaged_options_are_named(house, tmp_path):
    (tmp_path / "x.pth").write_bytes((house / "bare.pth").read_bytes())
    (tmp_path / "x.json").write_text("[")
    with pytest.raises(UserError, match=r"x.json holds no saved options"):
        load_generator(tmp_path / "x.pth", device="cpu")


@pytest.mark.parametrize("name", [path.stem for path in pretrained.FOLDER.glob("*.pth")])
def test_what_the_repository_has_is_complete(name, monkeypatch):
    """Runs on what is there: weights that load with their options, and a card."""
    monkeypatch.undo()
    translate = load_generator(name, "nowhere", device="cpu")
    assert translate(picture((30, 20))).size == (30, 20)
    card = (pretrained.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    for part in ("Data", "Command", "Steps", "Seed", "Metrics", "Licence", "does badly"):
        assert part in card
