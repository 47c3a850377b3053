"""Runs of cycle_gan, dcl and qs_dual: train.py, its log and page, test.py, load_generator, export."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from trained_run import command_of, draw_set, make_run

import train
from models.inference import load_generator
from util.image_files import open_rgb
from util.watch.loss_log import read_loss_records
from util.weight_files import read_tensors

WORDS = {
    "cycle_gan": "--model cycle_gan",
    "dcl": "--model dcl --netF_nc 4 --num_patches 8",
    "qs_dual": "--model qs_dual --netF_nc 4 --num_patches 8",
}
TINY = (
    "--gpu_ids -1 --ngf 4 --ndf 4 --netG resnet_4blocks --load_size 34 --crop_size 32 --num_threads 0 "
    "--display_id 0 --n_epochs 1 --n_epochs_decay 1 --print_freq 1 --update_html_freq 2 --init_gain 0.5"
).split()


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    return draw_set(tmp_path_factory.mktemp("set"), trainA=3, trainB=2, testA=2, testB=3)


@pytest.fixture(scope="module", params=WORDS)
def trained(request, dataroot, tmp_path_factory):
    """A run of each model, trained for two epochs of three images."""
    folder = tmp_path_factory.mktemp(request.param)
    where = ["--checkpoints_dir", str(folder), "--name", "run"]
    words = ["--dataroot", str(dataroot), *where, *TINY, *WORDS[request.param].split()]
    assert train.main(words) == 0
    return SimpleNamespace(model=request.param, folder=folder / "run", where=where, words=words)


def test_a_training_leaves_networks_losses_and_pictures(trained):
    cycles = trained.model == "cycle_gan"
    networks = ["D_A", "D_B", *([] if cycles else ["F1", "F2"]), "G_A", "G_B"]
    files = sorted(path.name for path in trained.folder.glob("latest_net_*"))
    assert files == [f"latest_net_{name}.pth" for name in networks]
    terms = ("cycle_A", "cycle_B") if cycles else ("NCE1", "NCE2")
    records = read_loss_records(trained.folder)
    assert len(records) == 6
    assert records[5].losses.keys() == {"D_A", "D_B", "G_A", "G_B", "idt_A", "idt_B", *terms, "G"}
    page = (trained.folder / "web" / "index.html").read_text()
    assert all(label in page for label in ("real_A", "fake_B", "idt_B", "real_B", "fake_A", "idt_A"))
    assert ("rec_A" in page) == ("rec_B" in page) == cycles


def test_a_training_starts_from_the_generator_that_cyclegans_code_publishes(trained, tmp_path, capsys):
    (tmp_path / "published").mkdir()
    file = shutil.copy(trained.folder / "latest_net_G_A.pth", tmp_path / "published" / "latest_net_G.pth")
    more = f"--checkpoints_dir {tmp_path} --name other --pretrained_name published --n_epochs_decay 0"
    assert train.main([*trained.words, *more.split(), "--lr", "1e-12"]) == 0
    assert "Starting from the weights of published: G_A" in capsys.readouterr().out
    there, here = read_tensors(file), read_tensors(tmp_path / "other/latest_net_G_A.pth")
    assert all(torch.allclose(there[key], here[key], atol=1e-6) for key in there)


@pytest.mark.parametrize("direction, network", [("AtoB", "G_A"), ("BtoA", "G_B")])
def test_either_direction_is_translated(trained, dataroot, tmp_path, direction, network):
    """Of a data set, of a photograph, from Python by the run's name and by the file's path."""
    words = "--name", "run", "--direction", direction
    command, source = command_of(trained.folder.parent, tmp_path / "results", *words), direction[0]
    assert command("--dataroot", dataroot) == 0
    ending = "" if direction == "AtoB" else "_BtoA"  # against the direction of training
    fakes = tmp_path / "results" / "run" / f"test_latest{ending}" / "images" / "fake_B"
    expected = sorted(path.name for path in (dataroot / f"test{source}").iterdir())
    assert sorted(path.name for path in fakes.iterdir()) == expected
    photo = dataroot / f"test{source}" / f"{source}1.png"
    assert command("--input", photo, "--output", tmp_path / "out.png") == 0

    by_name = load_generator("run", trained.folder.parent, device="cpu", direction=direction)
    by_path = load_generator(trained.folder / f"latest_net_{network}.pth", device="cpu")
    state = read_tensors(trained.folder / f"latest_net_{network}.pth")
    for translate in (by_name, by_path):
        assert all(torch.equal(value, state[key]) for key, value in translate.net.state_dict().items())
    made = np.asarray(by_name(Image.open(photo))).astype(int)
    for path in (fakes / photo.name, tmp_path / "out.png"):
        assert np.abs(np.asarray(open_rgb(path)).astype(int) - made).max() <= 1
    assert made.std() > 1  # not an empty comparison


@pytest.mark.parametrize(
    "run, direction, network",
    [("pretrained", "AtoB", "G_A"), ("cyclegan", "AtoB", "G_A"), ("cyclegan", "BtoA", "G_B")],
)
def test_files_of_cyclegans_code_translate_without_options(dataroot, tmp_path, run, direction, network):
    """Two generators of a training, or a single one like its downloads; no options beside them."""
    made = make_run(tmp_path / "made", "--model", "cycle_gan", "--init_gain", "0.5")
    folder, photo, out = tmp_path / run, dataroot / "testA" / "A0.png", tmp_path / "out.png"
    folder.mkdir()
    for name in ("G_A", "G_B") if run == "cyclegan" else ("G_A",):
        copied = name if run == "cyclegan" else "G"
        shutil.copy(made / f"latest_net_{name}.pth", folder / f"latest_net_{copied}.pth")
    command = command_of(tmp_path, tmp_path / "results", "--name", run, "--direction", direction)
    assert command("--input", photo, "--output", out) == 0
    by_name = load_generator(run, tmp_path, device="cpu", direction=direction)
    by_path = load_generator(made / f"latest_net_{network}.pth", device="cpu")
    saved = read_tensors(made / f"latest_net_{network}.pth")
    for translate in (by_name, by_path):
        assert torch.equal(translate.net.state_dict()["model.1.weight"], saved["model.1.weight"])
    expected = np.asarray(by_name(Image.open(photo))).astype(int)
    assert np.abs(np.asarray(open_rgb(out)) - expected).max() <= 1
