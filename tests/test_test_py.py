"""test.py on a data set: what it writes, in which order it pairs, and what it says of a wrong call."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from trained_run import command_of, draw, draw_set, make_run

from models.inference import load_generator
from util.image_files import open_rgb
from util.weight_files import read_tensors


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    make_run(folder)
    return folder


@pytest.fixture
def dataset(tmp_path):
    """Five of A, two of B, and no training data."""
    return draw_set(tmp_path / "set", testA=5, testB=2)


@pytest.fixture
def command(runs, dataset, tmp_path):
    return command_of(runs, tmp_path / "results", "--name", "run", "--dataroot", dataset)


def written(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_image_is_translated_and_shown_beside_its_source(
    command, runs, dataset, tmp_path, capsys, batch_size
):
    assert command("--batch_size", batch_size) == 0
    assert "translated 5 of 5 images" in capsys.readouterr().out
    results = tmp_path / "results" / "run" / "test_latest"
    labels = ("fake_B", "real_A", "real_B")
    files = [f"images/{label}/A{number}.png" for label, number in itertools.product(labels, range(5))]
    assert written(results) == [".images.json", *files, "index.html"]
    translate = load_generator("run", runs, device="cpu")
    for number in range(5):
        name = f"A{number}.png"
        source = open_rgb(dataset / "testA" / name)
        assert np.array_equal(open_rgb(results / "images" / "real_A" / name), source)
        assert np.abs(difference(results / "images" / "fake_B" / name, translate(source))).max() <= 1
        partner = dataset / "testB" / f"B{number % 2}.png"  # by order, starting over
        assert np.array_equal(open_rgb(results / "images" / "real_B" / name), open_rgb(partner))
    page = (results / "index.html").read_text()
    assert all(f'src="./{file}"' in page for file in files) and "5 of 5" in page


def difference(path, image) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int) - np.asarray(image)


def test_an_earlier_result_is_replaced_and_nothing_of_it_left(command, dataset, tmp_path, capsys):
    assert command() == 0
    results = tmp_path / "results" / "run" / "test_latest"
    shutil.rmtree(dataset / "testB")  # is not needed
    for place in ("evaluation.json", "images/fake_B/mine.png"):  # of others: they stay
        draw(results / place, format="PNG")
    assert command("--num_test", 2) == 0
    assert "translated 2 of 5 images" in capsys.readouterr().out
    assert written(results / "images/fake_B") == ["A0.png", "A1.png", "mine.png"]
    assert (results / "evaluation.json").is_file()
    # a record from elsewhere deletes nothing beside the results, and a damaged one stops nothing
    (results / ".images.json").write_text('["images/../evaluation.json", "evaluation.json"]')
    assert command("--num_test", 1) == 0 and (results / "evaluation.json").is_file()
    (results / ".images.json").write_text("[")
    (dataset / "testA" / "A1.png").write_bytes(b"broken")
    assert command() == 2
    assert "A1.png" in capsys.readouterr().err
    assert not (results / "index.html").exists()  # which says that a result is whole
    assert command("--on_bad_image", "skip") == 0
    assert "translated 4 of 5 images" in capsys.readouterr().out


def test_direction_other_phases_and_epochs(command, runs, dataset, tmp_path):
    (dataset / "testA").rename(dataset / "valA")
    (dataset / "testB").rename(dataset / "valB")
    (runs / "run" / "7_net_G.pth").write_bytes((runs / "run" / "latest_net_G.pth").read_bytes())
    assert command("--direction", "BtoA", "--epoch", "7") == 0
    (runs / "run" / "7_net_G.pth").unlink()
    images = tmp_path / "results" / "run" / "test_7_BtoA" / "images"
    assert written(images / "fake_B") == ["B0.png", "B1.png"]
    assert np.array_equal(open_rgb(images / "real_A" / "B1.png"), open_rgb(dataset / "valB" / "B1.png"))


@pytest.mark.parametrize("trained_with", [[], ["--eval", "false"]])
def test_every_way_to_translate_treats_batch_norm_as_the_run_says(command, dataset, tmp_path, trained_with):
    """By running statistics, or by those of each image where the run was trained with --eval false."""
    folder = make_run(tmp_path / "runs", "--normG", "batch", *trained_with)
    state = read_tensors(folder / "latest_net_G.pth")
    for name, value in state.items():
        if name.endswith("running_mean"):
            value += 3
    torch.save(state, folder / "latest_net_G.pth")
    name = ["--checkpoints_dir", tmp_path / "runs"]
    assert command(*name) == 0
    photo = dataset / "testA" / "A0.png"
    assert command(*name, "--input", photo, "--output", tmp_path / "one.png") == 0
    image = open_rgb(photo)
    first = np.asarray(load_generator("run", tmp_path / "runs", device="cpu")(image)).astype(int)
    of_the_set = tmp_path / "results" / "run" / "test_latest" / "images" / "fake_B" / "A0.png"
    for other in (Image.open(of_the_set), Image.open(tmp_path / "one.png")):
        assert np.abs(first - np.asarray(other)).max() <= 1
    alone = shutil.copy(folder / "latest_net_G.pth", tmp_path / "alone_net_G.pth")
    other = np.asarray(load_generator(alone, device="cpu")(image))  # without options: running statistics
    assert (np.abs(first - other).max() > 5) == bool(trained_with)


@pytest.mark.parametrize(
    "trained, size",
    [
        ("--preprocess scale_width --load_size 48 --crop_size 28", (48, 28)),
        ("--preprocess scale_shortside_and_crop --load_size 64 --crop_size 24", (96, 56)),
        ("--load_size 40 --crop_size 32", (32, 32)),  # random crops end with n_epochs
        ("--load_size 40 --crop_size 32 --n_epochs_decay 0", (40, 40)),
        ("--model cycle_gan --load_size 40 --crop_size 32", (40, 40)),
    ],
)
def test_test_images_keep_the_scale_of_training_and_are_whole(command, dataset, tmp_path, trained, size):
    for path in (dataset / "testA").iterdir():
        path.unlink()
    draw(dataset / "testA" / "wide.png", (96, 56))
    make_run(tmp_path / "runs", *trained.split(), name="wide")
    words = ["--checkpoints_dir", tmp_path / "runs", "--name", "wide"]
    fake = tmp_path / "results" / "wide" / "test_latest" / "images" / "fake_B" / "wide.png"
    assert command(*words) == 0
    assert Image.open(fake).size == size
    assert command(*words, "--preprocess", "resize_and_crop", "--load_size", 40, "--crop_size", 24) == 0
    assert Image.open(fake).size == (24, 24)  # a crop that is asked for


def test_grey_targets_are_grey_files(command, dataset, tmp_path):
    make_run(tmp_path / "runs", *"--output_nc 1 --lambda_NCE 0".split(), name="grey")
    assert command("--checkpoints_dir", tmp_path / "runs", "--name", "grey") == 0
    images = tmp_path / "results" / "grey" / "test_latest" / "images"
    modes = {label: Image.open(images / label / "A0.png").mode for label in ("real_A", "fake_B", "real_B")}
    assert modes == {"real_A": "RGB", "fake_B": "L", "real_B": "L"}


def test_the_other_direction_of_a_single_generator_is_said(command, dataset, capsys, tmp_path):
    assert command("--direction", "BtoA") == 0
    assert "--direction BtoA gives it the other domain's images" in capsys.readouterr().err
    words = ["--input", dataset / "testA" / "A0.png", "--output", tmp_path / "out.png"]
    assert command("--direction", "BtoA", "--QS_mode", "global", *words) == 0
    told = capsys.readouterr().err
    assert "--direction BtoA has no effect with --input" in told
    assert "note: no effect of --QS_mode: it acts in training alone" in told


def test_what_is_missing_or_does_not_fit_is_named_with_status_2(command, tmp_path, capsys):
    for words, message in {
        ("--name", "walk"): "walk/latest_net_G.pth: --name can be run",
        ("--ngf", "8"): "give those of its training, --ngf 4",
        ("--dataroot", tmp_path / "none"): "datasets/download_qsattn_dataset.sh",
    }.items():
        assert command(*words) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "results").write_text("")
    assert command() == 2
    assert str(tmp_path / "results") in capsys.readouterr().err
