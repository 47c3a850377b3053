"""Models in pretrained/: written in float16 by scripts/export.py, used by test.py, Python and the scripts."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trained_run import draw, make_run, picture

import test as translation
from models import option_defaults, pretrained
from models.inference import load_generator
from models.munit_model import munit_generator
from models.munit_networks import StyledTranslator
from models.weights import read_weights, save_weights
from options.test_options import TestOptions
from scripts import evaluate, export, visualize_queries
from scripts.attention_intensity import IntensityOptions
from scripts.evaluation.options import EvaluateOptions
from scripts.evaluation.sweep import weights_of
from util.errors import UserError


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


def status_of(command, words) -> int:
    """The exit status of a command, however it ends."""
    try:
        return command(words)
    except SystemExit as stop:
        return stop.code


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


@pytest.mark.parametrize("name", ["zebras", "bare"])
def test_test_py_translates_with_it_at_any_precision(house, tmp_path, name):
    draw(tmp_path / "photo.png", (50, 40))
    words = ["--input", str(tmp_path / "photo.png"), "--gpu_ids", "-1", "--output", str(tmp_path / "out.png")]
    words += ["--pretrained", name if name == "zebras" else str(house / "bare.pth")]
    expected = pixels(load_generator("zebras", device="cpu")(picture((50, 40))))
    differences = []
    for precision in ("fp32", "bf16"):
        assert translation.main([*words, "--precision", precision]) == 0
        differences.append(abs(pixels(Image.open(tmp_path / "out.png")) - expected).max())
    assert differences[0] == 0 < differences[1] < 40


def test_results_carry_its_name_and_size(house):
    opt = TestOptions().parse(["--pretrained", "zebras"])
    assert (opt.name, opt.crop_size, opt.normG, opt.epoch) == ("pretrained/zebras", 32, "batch", "latest")
    opt = TestOptions().parse(["--pretrained", str(house / "bare.pth")])
    assert (opt.name, opt.ngf, opt.normG) == ("pretrained/bare", 4, "batch")


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
        ("--pretrained cats.pth", "there is no weights file cats.pth"),
        ("--pretrained a/../zebras", "there is no pretrained model a/../zebras"),
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
    assert status_of(translation.main, [*words, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_single_generator_or_no_pth_is_refused(runs, tmp_path, capsys):
    sizes = {"ngf": 4, "mlp_dim": 8, "n_res": 1, "n_downsample": 2, "style_dim": 3}
    opt = Namespace(**{**option_defaults("munit"), **sizes}, input_nc=3, output_nc=3)
    both = StyledTranslator(munit_generator(opt), munit_generator(opt))
    with pytest.raises(UserError, match="translates with two networks"):
        export.write_pretrained(both, {}, tmp_path / "x.pth")
    words = ["--name", "zebras", "--checkpoints_dir", str(runs), "--format", "pretrained"]
    assert export.main([*words, "--output", str(tmp_path / "x.pt")]) == 2
    assert "does not end in .pth" in capsys.readouterr().err


def with_model(name: str) -> str:
    needed = {"direction": "AtoB", "input_nc": 3, "output_nc": 3, "crop_size": 32}
    return json.dumps({"model": name, **needed})


@pytest.mark.parametrize(
    "text, message",
    [
        ("[", "x.json holds no saved options"),
        ("[1]", "x.json holds no saved options"),
        ('{"model": "qs"}', "x.json does not say direction"),
        (with_model("sphinx"), "name --model sphinx, which is not known here"),
        (with_model("munit"), "holds one network, but --model munit translates with"),
    ],
)
def test_options_that_cannot_be_used_are_named(house, tmp_path, text, message, capsys):
    (tmp_path / "x.pth").write_bytes((house / "bare.pth").read_bytes())
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_generator(tmp_path / "x.pth", device="cpu")
    draw(tmp_path / "photo.png")
    words = ["--pretrained", str(tmp_path / "x.pth"), "--input", str(tmp_path / "photo.png")]
    assert status_of(translation.main, [*words, "--output", str(tmp_path / "out"), "--gpu_ids", "-1"]) == 2
    assert message in capsys.readouterr().err


def test_one_direction_of_two_is_packed_and_no_other_is_promised(tmp_path, capsys):
    folder = make_run(tmp_path / "runs", "--model", "cycle_gan", name="both_0.5")
    torch.save(
        {key: -value for key, value in read_weights(folder / "latest_net_G_A.pth").items()},
        folder / "latest_net_G_B.pth",
    )
    words = ["--name", "both_0.5", "--checkpoints_dir", str(tmp_path / "runs"), "--format", "pretrained"]
    assert export.main([*words, "--direction", "BtoA", "--output", str(tmp_path / "back.pth")]) == 0
    image = picture((32, 32))
    back = pixels(load_generator("both_0.5", tmp_path / "runs", device="cpu", direction="BtoA")(image))
    assert abs(pixels(load_generator(tmp_path / "back.pth", device="cpu")(image)) - back).max() <= 3
    with pytest.raises(UserError, match="holds the generator for --direction BtoA alone"):
        load_generator(tmp_path / "back.pth", device="cpu", direction="AtoB")
    assert export.main([*words, "--output", str(tmp_path / "back.pth")]) == 2
    assert "back.pth exists already: remove it" in capsys.readouterr().err


def test_files_are_named_after_the_whole_name_of_the_run(house):
    words = {"name": "sets/run_0.5", "epoch": "5", "direction": None}
    names = [export.default_output(Namespace(**words, format=form)) for form in ("pretrained", "onnx")]
    assert names == [export.FOLDER / "run_0.5.pth", Path("run_0.5_5.onnx")]
    weights = {"name": "x/latest_net_G.pth", "epoch": "latest", "direction": None, "format": "torch_export"}
    assert export.default_output(Namespace(**weights)) == Path("latest_net_G_latest.pt2")


def test_a_checkpoint_of_a_run_is_asked_for_by_the_name_of_the_run(runs, capsys):
    words = ["--pretrained", str(runs / "zebras" / "latest_net_G.pth"), "--input", "photo.png"]
    assert status_of(translation.main, words) == 2
    assert "is a checkpoint of a run: give --name zebras --checkpoints_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words, message",
    [
        (EvaluateOptions, "--pretrained zebras --epochs all", "--pretrained is one checkpoint"),
        (IntensityOptions, "--pretrained zebras", "--pretrained holds a generator alone"),
    ],
)
def test_other_scripts_refuse_what_one_generator_cannot_do(options, words, message, capsys):
    assert status_of(options().parse, words.split()) == 2
    assert message in capsys.readouterr().err


def test_evaluate_says_how_to_translate(house, tmp_path, capsys):
    draw(tmp_path / "real" / "1.png")
    words = f"--pretrained zebras --metrics swd --real {tmp_path / 'real'} --results_dir {tmp_path}"
    assert evaluate.main([*words.split(), "--gpu_ids", "-1"]) == 2
    assert "make them: python test.py --pretrained zebras" in capsys.readouterr().err


@pytest.mark.parametrize("name", [path.stem for path in pretrained.FOLDER.glob("*.pth")])
def test_what_the_repository_has_is_complete(name, monkeypatch):
    """Runs on what is there: weights in float16 that load with their options, and a card."""
    monkeypatch.undo()
    path = pretrained.pretrained_file(name)
    assert {value.dtype for value in read_weights(path).values()} == {torch.float16}
    assert pretrained.pretrained_options(path)["crop_size"] >= 64
    translate = load_generator(name, "nowhere", device="cpu")
    assert translate(picture((30, 20))).size == (30, 20)
    card = (pretrained.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    for part in ("Data", "Command", "Steps", "Seed", "Metrics", "Licence", "does badly"):
        assert part in card
