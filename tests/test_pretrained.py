"""Models that need no training: run folders in float16, and those that others publish."""

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
from models import inference
from models.inference import load_generator
from scripts import export
from scripts.evaluate import EvaluateOptions
from util.errors import UserError
from util.weight_files import read_tensors


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    make_run(folder, *"--num_patches 16 --normG batch".split(), name="zebras")
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
    for module in (inference, export):
        monkeypatch.setattr(module, "ROOT", root)


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.fixture
def translated(tmp_path, capsys):
    """test.py's translation of a photograph with more words; or what it says, where it ends with status 2."""
    draw(tmp_path / "photo.png", (50, 40))
    words = ["--input", str(tmp_path / "photo.png"), "--gpu_ids", "-1", "--output", str(tmp_path / "out.png")]

    def run(*more: str) -> np.ndarray | str:
        try:
            status = translation.main([*words, *more])
        except SystemExit as stop:
            status = stop.code
        assert status in (0, 2)
        return capsys.readouterr().err if status else pixels(Image.open(tmp_path / "out.png"))

    return run


@pytest.mark.parametrize("name, direction", [("zebras", "AtoB"), ("both", "AtoB"), ("both", "BtoA")])
def test_it_translates_as_the_run_and_is_one_of_another_folder(runs, root, translated, name, direction):
    photo = picture((50, 40))
    of_run = pixels(load_generator(name, runs, device="cpu", direction=direction)(photo))
    packed = pixels(load_generator(name, "nowhere", device="cpu", direction=direction)(photo))
    assert abs(packed - of_run).max() <= 3
    assert (translated("--pretrained", name, "--direction", direction) == packed).all()
    state = read_tensors(next(root.glob(f"pretrained/{name}/latest_net_G*.pth")))
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}
    options = json.loads((root / "pretrained" / name / "train_opt.json").read_text())
    assert options["crop_size"] == 32 and not {"dataroot", "checkpoints_dir", "name"} & options.keys()


@pytest.mark.parametrize(
    "words, message",
    [
        ("--pretrained cats", "there is no pretrained model cats: test.py --list_pretrained lists them"),
        ("--pretrained a/../zebras", "there is no pretrained model a/../zebras"),
        ("--pretrained zebras --name run", "--name names a run, and --pretrained a model instead"),
        ("--name nowhere", "--list_pretrained lists models"),
    ],
)
def test_wrong_calls_are_named_with_status_2(words, message, translated):
    assert message in translated(*words.split())


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
    models = {"zebra2horse": (address, "BtoA"), cut: (f"{address}/cut.tar", "AtoB")}
    monkeypatch.setattr(inference, "PUBLISHED", models)
    return folder


@pytest.mark.parametrize("name", ["zebra2horse", "cat2dog_cut_pretrained"])
def test_a_published_model_is_fetched_once_and_is_a_run(name, publish, translated, tmp_path):
    expected = pixels(load_generator(publish.parent / "generator.pth", device="cpu")(picture((50, 40))))
    assert (translated("--pretrained", name) == expected).all()
    for file in publish.iterdir():
        file.unlink()
    assert (translated("--pretrained", name) == expected).all()
    opt = EvaluateOptions().parse(["--pretrained", name, "--metrics", "swd"])
    assert opt.direction == ("BtoA" if name == "zebra2horse" else "AtoB") and opt.load_size == 256
    words = ["--pretrained", name, "--format", "pretrained", "--output", str(tmp_path / "packed")]
    assert export.main(words) == 0 and (tmp_path / "packed/latest_net_G.pth").is_file()


def test_without_a_network_one_line_says_where_a_published_model_goes(
    server, translated, tmp_path, monkeypatch, capsys
):
    names = list(inference.PUBLISHED)
    assert len(names) == 18 + 6
    with pytest.raises(SystemExit) as stop:
        translation.main(["--list_pretrained"])
    listed = capsys.readouterr().out.split()
    assert not stop.value.code and set(names) < set(listed) and "zebras" in listed
    monkeypatch.setattr(inference, "PUBLISHED", {"zebra2horse": ("http://127.0.0.1:9", "BtoA")})
    place = tmp_path / "torch/hub/pretrained/zebra2horse/latest_net_G.pth"
    error = translated("--pretrained", "zebra2horse")
    assert "cannot fetch http://127.0.0.1:9/zebra2horse.pth" in error and f"put it at {place}\n" in error


def test_a_repository_of_the_hub(runs, server, tmp_path, monkeypatch):
    """With the packages' own names, of which this project needs neither."""
    file = runs / "both" / "latest_net_G_A.pth"

    def snapshot_download(repository, local_dir, allow_patterns):
        assert repository == "someone/horses" and "*.safetensors" in allow_patterns
        local_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, local_dir / "model.safetensors")

    packages = {
        "huggingface_hub": SimpleNamespace(snapshot_download=snapshot_download),
        "safetensors.torch": SimpleNamespace(load_file=lambda _: torch.load(file)),
    }
    monkeypatch.setitem(sys.modules, "safetensors", SimpleNamespace())
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)
    for name, package in packages.items():
        with pytest.raises(UserError, match=f"pip install {name.split('.')[0]}"):
            load_generator("hf:someone/horses", device="cpu")
        monkeypatch.setitem(sys.modules, name, package)
    found, expected = (load_generator(name, device="cpu")(picture()) for name in ("hf:someone/horses", file))
    assert (pixels(found) == pixels(expected)).all()


HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("folder", sorted(HERE.glob("pretrained/*/")), ids=lambda folder: folder.name)
def test_what_the_repository_has_is_complete(folder, monkeypatch):
    monkeypatch.setattr(inference, "ROOT", HERE)
    state = read_tensors(folder / "latest_net_G.pth")
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert load_generator(folder.name, "nowhere", device="cpu")(picture((30, 20))).size == (30, 20)
    assert (folder / "README.md").is_file()
