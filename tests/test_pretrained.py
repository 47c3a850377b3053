"""Models in pretrained/: run folders in float16, written by scripts/export.py, used like any other run."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from trained_run import draw, make_run, picture

import test as translation
from models import pretrained
from models.inference import load_generator
from options.test_options import TestOptions
from scripts import export, visualize_queries
from scripts.attention_intensity import IntensityOptions
from scripts.evaluate import EvaluateOptions, weights_of
from util.errors import UserError
from util.weight_files import read_tensors


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    make_run(folder, *"--QS_mode local --num_patches 16 --qs_window 3 --normG batch".split(), name="zebras")
    make_run(folder, "--model", "cycle_gan", name="both")
    return folder


@pytest.fixture(scope="module")
def root(runs, tmp_path_factory):
    """A checkout whose folder pretrained/ has the models `zebras` and `both`."""
    root = tmp_path_factory.mktemp("root")
    for name in ("zebras", "both"):
        words = ["--name", name, "--checkpoints_dir", str(runs), "--format", "pretrained"]
        assert export.main([*words, "--output", str(root / "pretrained" / name)]) == 0
    return root


@pytest.fixture(autouse=True)
def at_the_root(root, monkeypatch):
    for module in ("models.pretrained", "scripts.export"):
        monkeypatch.setattr(f"{module}.ROOT", root)


def status_of(command, words) -> int:
    """The exit status of a command, however it ends."""
    try:
        return command(words)
    except SystemExit as stop:
        return stop.code


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_it_is_half_the_size_and_translates_alike(runs, root):
    folder = root / "pretrained" / "zebras"
    state = read_tensors(folder / "latest_net_G.pth")
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}
    half, whole = ((path / "latest_net_G.pth").stat().st_size for path in (folder, runs / "zebras"))
    assert half < 0.75 * whole  # the archive's own parts are most of so small a file
    image = picture((37, 41))
    options = json.loads((folder / "train_opt.json").read_text())
    assert options["num_patches"] == 16 and not {"dataroot", "checkpoints_dir", "name"} & options.keys()
    of_run = load_generator("zebras", runs, device="cpu")(image)
    for name in ("zebras", folder / "latest_net_G.pth"):
        assert abs(pixels(load_generator(name, device="cpu")(image)) - pixels(of_run)).max() <= 3


def test_both_directions_are_packed(runs):
    image = picture((32, 32))
    for direction in ("AtoB", "BtoA"):
        of_run, packed = (
            pixels(load_generator("both", folder, device="cpu", direction=direction)(image))
            for folder in (runs, "nowhere")
        )
        assert abs(of_run - packed).max() <= 3


def test_test_py_translates_with_it_at_any_precision(tmp_path):
    draw(tmp_path / "photo.png", (50, 40))
    words = ["--input", str(tmp_path / "photo.png"), "--gpu_ids", "-1", "--output", str(tmp_path / "out.png")]
    expected = pixels(load_generator("zebras", device="cpu")(picture((50, 40))))
    differences = []
    for precision in ("fp32", "bf16"):
        assert translation.main([*words, "--pretrained", "zebras", "--precision", precision]) == 0
        differences.append(abs(pixels(Image.open(tmp_path / "out.png")) - expected).max())
    assert differences[0] == 0 < differences[1] < 40


def test_it_is_a_run_of_another_folder(root):
    opt = TestOptions().parse(["--pretrained", "zebras"])
    assert (opt.name, opt.crop_size, opt.normG, opt.epoch) == ("pretrained/zebras", 32, "batch", "latest")
    opt = EvaluateOptions().parse("--pretrained zebras --metrics swd".split())
    assert weights_of(opt, "latest") == root / "pretrained/zebras/latest_net_G.pth"
    opt = visualize_queries.parse(["--pretrained", "zebras", "--input", "photo.png"])
    assert opt.name == "pretrained/zebras"


@pytest.mark.parametrize(
    "words, message",
    [
        ("--pretrained cats", "there is no pretrained model cats: test.py --list_pretrained lists them"),
        ("--pretrained a/../zebras", "there is no pretrained model a/../zebras"),
        ("--pretrained zebras --name run", "--name names a run, and --pretrained a model instead"),
        ("--name nowhere", "--list_pretrained lists models"),
    ],
)
def test_wrong_calls_are_named_with_status_2(words, message, tmp_path, capsys):
    draw(tmp_path / "photo.png")
    words = [*words.split(), "--gpu_ids", "-1", "--input", str(tmp_path / "photo.png")]
    assert status_of(translation.main, [*words, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_packed_is_named(runs, root, tmp_path, capsys):
    words = ["--name", "zebras", "--checkpoints_dir", str(runs), "--format", "pretrained"]
    assert export.main([*words, "--output", str(root / "pretrained" / "zebras")]) == 2
    assert "zebras exists already: remove it" in capsys.readouterr().err
    (tmp_path / "bare").mkdir()
    path = tmp_path / "bare/latest_net_G.pth"
    path.write_bytes((runs / "zebras/latest_net_G.pth").read_bytes())
    words = ["--name", "bare", "--checkpoints_dir", str(tmp_path), "--format", "pretrained"]
    assert export.main([*words, "--output", str(tmp_path / "packed")]) == 2
    assert "bare has no train_opt.json" in capsys.readouterr().err and not (tmp_path / "packed").exists()


def test_the_attention_of_a_generator_alone_is_refused(capsys):
    assert status_of(IntensityOptions().parse, ["--pretrained", "zebras"]) == 2
    assert "--pretrained holds a generator alone" in capsys.readouterr().err


# Models that others publish.


@pytest.fixture
def publish(server, runs, monkeypatch):
    """Makes the only published models those of this server: CycleGAN's zebra2horse and CUT's cat2dog."""
    folder, address = server
    cut = "cat2dog_cut_pretrained"
    weights = shutil.copy(runs / "both" / "latest_net_G_A.pth", folder.parent / "generator.pth")
    # As torch before 0.4 saved instance norms.
    torch.save({**torch.load(weights), "model.2.running_mean": torch.zeros(4)}, folder / "zebra2horse.pth")
    with tarfile.open(folder / "cut.tar", "w") as archive:
        archive.add(weights, f"checkpoints/{cut}/latest_net_G.pth")
        archive.add(weights, f"checkpoints/{cut}/latest_net_D.pth")
    monkeypatch.setattr(pretrained, "CUT", f"{address}/cut.tar")
    models = {address: {"zebra2horse": "BtoA"}, f"{address}/cut.tar": {cut: "AtoB"}}
    monkeypatch.setattr(pretrained, "PUBLISHED", models)
    return folder


@pytest.mark.parametrize("name", ["zebra2horse", "cat2dog_cut_pretrained"])
def test_a_published_model_is_fetched_once_and_is_a_run(name, publish, tmp_path):
    draw(tmp_path / "photo.png", (50, 40))
    words = ["--pretrained", name, "--gpu_ids", "-1", "--input", str(tmp_path / "photo.png")]
    assert translation.main([*words, "--output", str(tmp_path / "out.png")]) == 0
    for file in publish.iterdir():
        file.unlink()
    expected = load_generator(tmp_path / "generator.pth", device="cpu")(picture((50, 40)))
    assert (pixels(Image.open(tmp_path / "out.png")) == pixels(expected)).all()
    assert (pixels(load_generator(name, device="cpu")(picture((50, 40)))) == pixels(expected)).all()
    opt = EvaluateOptions().parse(["--pretrained", name, "--metrics", "swd"])
    assert opt.direction == ("BtoA" if name == "zebra2horse" else "AtoB") and opt.load_size == 256
    words = ["--pretrained", name, "--format", "pretrained", "--output", str(tmp_path / "packed")]
    assert export.main(words) == 0 and (tmp_path / "packed/latest_net_G.pth").is_file()
    assert visualize_queries.parse(["--pretrained", name, "--input", "x"]).name == f"pretrained/{name}"


def test_without_a_network_one_line_says_where_a_published_model_goes(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "PUBLISHED", {"http://127.0.0.1:9": {"zebra2horse": "BtoA"}})
    place = tmp_path / "torch/hub/pretrained/zebra2horse/latest_net_G.pth"
    assert status_of(translation.main, ["--pretrained", "zebra2horse", "--input", "photo.png"]) == 2
    error = capsys.readouterr().err
    assert "cannot fetch http://127.0.0.1:9/zebra2horse.pth" in error and f"put it at {place}\n" in error
    with pytest.raises(SystemExit) as stop:
        translation.main(["--list_pretrained"])
    assert not stop.value.code and "zebra2horse" in capsys.readouterr().out


def test_a_repository_of_the_hub(runs, server, tmp_path, monkeypatch):
    """With the packages' own names, of which this project needs neither."""
    file = shutil.copy(runs / "both" / "latest_net_G_A.pth", tmp_path / "generator.pth")
    state = torch.load(file)

    def snapshot_download(repository, local_dir, allow_patterns):
        assert repository == "someone/horses" and "*.safetensors" in allow_patterns
        local_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, local_dir / "model.safetensors")

    def absent(name):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=f"pip install {name.split('.')[0]}"):
            load_generator("hf:someone/horses", device="cpu")

    absent("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    monkeypatch.setitem(sys.modules, "safetensors", SimpleNamespace())
    absent("safetensors.torch")
    monkeypatch.setitem(sys.modules, "safetensors.torch", SimpleNamespace(load_file=lambda _: state))
    image = picture()
    translated = load_generator("hf:someone/horses", device="cpu")(image)
    assert (pixels(translated) == pixels(load_generator(file, device="cpu")(image))).all()


HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("folder", sorted(HERE.glob("pretrained/*/")), ids=lambda folder: folder.name)
def test_what_the_repository_has_is_complete(folder, monkeypatch):
    """Runs on what is there: weights in float16 that load with their options, and a card."""
    monkeypatch.setattr(pretrained, "ROOT", HERE)
    state = read_tensors(folder / "latest_net_G.pth")
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert load_generator(folder.name, "nowhere", device="cpu")(picture((30, 20))).size == (30, 20)
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in ("Data", "Command", "Steps", "Seed", "Metrics", "Licence", "does badly"):
        assert part in card
