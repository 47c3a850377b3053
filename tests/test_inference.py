"""The Python API and `test.py --input`: any size and mode; files that fail are named, others continue."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trained_run import command_of, draw, make_run, picture

import test as translation
from models import translator as translator_module
from models.inference import load_generator
from models.translator import BYTES, Translator
from options.test_options import TestOptions
from util.errors import UserError
from util.images import to_pixels
from util.translate import output_names, read_photo, to_photo, translate_files


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    make_run(folder)
    return folder


@pytest.fixture(scope="module")
def translator(runs) -> Translator:
    return load_generator("run", runs, device="cpu")


@pytest.fixture
def command(runs, tmp_path):
    return command_of(runs, tmp_path / "results", "--name", "run")


# Any size


def test_at_a_multiple_of_four_it_is_the_network_itself(translator):
    image = picture((24, 36))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = to_pixels(translator.net(pixels / 127.5 - 1))[0].numpy()
    assert np.abs(np.asarray(translator(image)).astype(int) - expected).max() <= 1
    assert len(np.unique(expected)) > 20  # not an empty comparison


SIDES = [(17, 23, (1, 0)), (1, 30, (7, 1)), (3, 2, (6, 7)), (1, 1, (7, 7))]


@pytest.mark.parametrize("height, width, before", SIDES)
def test_other_sides_are_extended_by_reflection(translator, height, width, before):
    """As NumPy reflects; of one pixel there is nothing to reflect, so it repeats."""
    images = torch.rand(2, 3, height, width) * 2 - 1
    sizes = [max(16, -(-side // 4) * 4) for side in (height, width)]
    margins = [(b, whole - side - b) for b, whole, side in zip(before, sizes, (height, width), strict=True)]
    extended = np.pad(images.numpy(), [(0, 0), (0, 0), *margins], mode="reflect")
    with torch.inference_mode():
        whole = translator.net(torch.from_numpy(extended))
    top, left = before
    torch.testing.assert_close(translator.run(images), whole[:, :, top : top + height, left : left + width])


# Any mode


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "I;16", "F", "LA", "RGBA"])
def test_any_mode_is_translated_and_alpha_comes_back(translator, mode):
    image = picture((20, 24), mode)
    translated = translator(image)
    assert image.mode == mode and translated.size == image.size
    assert translated.mode == ("RGBA" if mode.endswith("A") else "RGB")
    if mode.endswith("A"):
        assert translated.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_colours_are_not_blended_by_their_alpha_and_unseen_ones_are_white():
    colours = np.full((2, 2, 4), (200, 100, 50, 128), np.uint8)
    colours[0, 0, 3] = 0
    photo = to_photo(Image.fromarray(colours))
    assert photo.pixels[0, 0].tolist() == [255, 255, 255] and photo.pixels[1, 1].tolist() == [200, 100, 50]
    assert np.asarray(photo.alpha).tolist() == [[0, 128], [128, 128]]


@pytest.mark.parametrize("suffix, mode", [("jpg", "RGB"), ("png", "RGBA")])
def test_exif_orientation_is_applied_once(tmp_path, suffix, mode):
    """From a file and from an opened image alike, with alpha and without."""
    upright = draw(tmp_path / "upright.png", (30, 20), mode)
    turned = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    for photo in (read_photo(turned), to_photo(Image.open(turned))):
        assert photo.size == (30, 20) and (photo.alpha is not None) == (mode == "RGBA")
        assert np.abs(photo.pixels.astype(int) - to_photo(upright).pixels).mean() < 12


def test_a_generator_of_grey_images(tmp_path):
    make_run(tmp_path, "--input_nc", "1", "--output_nc", "1")
    translate = load_generator("run", tmp_path, device="cpu")
    assert [translate(picture((20, 20), mode)).mode for mode in ("RGB", "RGBA")] == ["L", "LA"]


# Loading


def test_what_cannot_be_loaded_is_named(runs, tmp_path):
    with pytest.raises(UserError, match="--name can be run"):
        load_generator("walk", runs)
    with pytest.raises(UserError, match="--epoch can be latest"):
        load_generator("run", runs, epoch=3)
    with pytest.raises(UserError, match="was trained AtoB alone: leave direction out"):
        load_generator("run", runs, direction="BtoA")
    torch.save({"mlp_0.0.weight": torch.zeros(4, 3)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth holds no generator"):
        load_generator(tmp_path / "x.pth")


def change_options(run: Path, changes: dict[str, object]) -> None:
    file = run / "train_opt.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_torch_hub_finds_the_translators_from_any_folder(runs, translator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = str(Path(translation.__file__).parent)
    found = torch.hub.load(root, "generator", "run", str(runs), device="cpu", source="local")
    image = picture((20, 24))
    assert np.array_equal(np.asarray(found(image)), np.asarray(translator(image)))


# Files


def test_names_keep_folders_and_never_collide():
    names = output_names(["d/a.jpg", "d/A.JPG", "d/a.png", "d/sub/a.tif", "d/b.c.png", "d/a.png.jpg"])
    expected = ["a.png", "A.JPG.png", "a.png.png", "sub/a.png", "b.c.png", "a.png.jpg.png"]
    assert [name.as_posix() for name in names] == expected
    long = [f"{'n' * 250}.tiff", f"{'n' * 251}.png", f"{'n' * 251}.jpg", f"{'é' * 125}x.jpg"]
    names = output_names(long)
    assert len(set(names)) == len(long) and max(len(os.fsencode(name)) for name in names) == 255


def test_a_folder_is_mirrored_in_batches_and_each_image_is_as_alone(translator, command, tmp_path, capsys):
    sizes = [(20, 20), (33, 17), (20, 20), (17, 33), (20, 20)]
    for number, size in enumerate(sizes):
        draw(tmp_path / "photos" / f"sub{number % 2}" / f"{number}.png", size, seed=number)
    assert command("--input", tmp_path / "photos", "--batch_size", 2) == 0
    assert "translated 5 of 5 images" in capsys.readouterr().out
    for number in range(5):
        name = f"sub{number % 2}/{number}.png"
        written = np.asarray(Image.open(tmp_path / "results" / "run" / "photos" / name))
        alone = np.asarray(translator(Image.open(tmp_path / "photos" / name)))
        assert written.shape == alone.shape and np.abs(written.astype(int) - alone).max() <= 1


def test_one_photo_needs_no_data_set(command, tmp_path):
    draw(tmp_path / "horse.png", (60, 40), "RGBA")
    photo = ["--input", tmp_path / "horse.png", "--dataroot", tmp_path / "nowhere"]
    assert command(*photo) == command(*photo, "--output", tmp_path / "folder", "--load_size", 20) == 0
    assert Image.open(tmp_path / "results/run/horse.png").size == (60, 40)
    scaled = Image.open(tmp_path / "folder/horse.png")
    assert (scaled.size, scaled.mode) == ((30, 20), "RGBA")
    for suffix, format in {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF"}.items():
        assert command(*photo, "--output", tmp_path / f"zebra.{suffix}") == 0
        with Image.open(tmp_path / f"zebra.{suffix}") as image:
            assert (image.format, image.size) == (format, (60, 40))
    assert command(*photo, "--output", tmp_path / "zebra.gif") == 2


def test_large_photographs_are_translated_at_the_size_of_training(translator, command, tmp_path):
    image = draw(tmp_path / "a.png", (120, 80))
    assert translator.translate_size == 32
    small = translator(image.resize((48, 32), Image.Resampling.BICUBIC))
    expected = np.asarray(small.resize((120, 80), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(translator(image)), expected)
    assert command("--input", tmp_path / "a.png", "--output", tmp_path / "b.png") == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), expected)
    whole = np.asarray(translator(image, load_size=0))
    assert whole.shape == expected.shape and not np.array_equal(whole, expected)
    clear = picture((120, 80), "RGBA")  # its alpha channel keeps its sharpness
    assert translator(clear).getchannel("A").tobytes() == clear.getchannel("A").tobytes()


@pytest.mark.parametrize("words, size", [
    ("--load_size 40 --crop_size 32", 32),
    ("--load_size 40 --crop_size 32 --n_epochs_decay 0", 40),
    ("--preprocess scale_width --load_size 64 --crop_size 32", 32),
    ("--preprocess none", None),
])  # fmt: skip
def test_the_size_of_a_run_is_its_own_or_that_of_training(tmp_path, words, size):
    folder = make_run(tmp_path, *words.split())
    assert load_generator("run", tmp_path, device="cpu").translate_size == size
    change_options(folder, {"translate_size": 48})
    assert load_generator("run", tmp_path, device="cpu").translate_size == 48
    opt = TestOptions().parse(["--name", "run", "--checkpoints_dir", str(tmp_path)])
    assert opt.load_size == 48 and opt.whole  # also of a data set


def test_what_memory_cannot_hold_is_refused_with_what_would_work(command, tmp_path, monkeypatch, capsys):
    draw(tmp_path / "large.png", (400, 100))
    monkeypatch.setattr(translator_module, "free_memory", lambda: BYTES * 4 * 100 * 100.0)
    words = ["--input", tmp_path / "large.png", "--output", tmp_path / "out.png"]
    assert command(*words, "--load_size", 0) == 1
    assert "scale it, with --load_size 50 or less" in capsys.readouterr().err
    assert command(*words, "--load_size", 50) == command(*words) == 0


def test_a_name_that_the_code_page_lacks_costs_no_result(command, tmp_path, monkeypatch):
    draw(tmp_path / "馬.png")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="cp1252", write_through=True))
    assert command("--input", tmp_path / "馬.png", "--output", tmp_path / "斑馬.png") == 0
    assert (tmp_path / "斑馬.png").is_file() and b"translated 1 of 1" in printed.getvalue()


def test_images_that_fail_are_named_and_the_rest_go_on(command, tmp_path, capsys):
    draw(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "text.jpg").write_text("no image")
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    (tmp_path / "in" / "up").symlink_to(tmp_path / "in")
    draw(tmp_path / "in" / "taken.png")
    (tmp_path / "out" / "taken.png").mkdir(parents=True)  # cannot be written: a folder of that name
    assert command("--input", tmp_path / "in", "--output", tmp_path / "out") == 1
    out, err = capsys.readouterr()
    assert "translated 1 of 4 images" in out and (tmp_path / "out" / "good.png").is_file()
    for name in ("text.jpg", "loop.png", "taken.png"):
        assert f"failed: {tmp_path / 'in' / name}: " in err
    assert "not an image of a known format" in err and "cannot be written" in err


def test_what_memory_cannot_hold_is_tried_alone_and_then_named(translator, tmp_path, monkeypatch):
    for number in range(3):
        draw(tmp_path / f"{number}.png", seed=number)
    sizes, translate = [], translator.translate

    def limited(pixels):
        sizes.append(len(pixels))
        if len(pixels) > 1 or len(sizes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return translate(pixels)

    monkeypatch.setattr(translator, "translate", limited)
    jobs = [(tmp_path / f"{number}.png", tmp_path / "out" / f"{number}.png") for number in range(3)]
    failures = translate_files(translator, jobs, batch_size=3)
    assert sizes == [3, 1, 1, 1]
    assert [path.name for path in failures] == ["0.png"] and "--load_size" in failures[tmp_path / "0.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.png", "2.png"]


def test_wrong_inputs_end_with_status_2_and_say_what_to_do(command, runs, tmp_path, capsys):
    def refused(*words: object) -> str:
        assert command(*words) == 2
        return capsys.readouterr().err

    folder = tmp_path / "in"
    folder.mkdir()
    assert "give an image or a folder, in quotes" in refused("--input", tmp_path / "my")
    assert "no images in the folder" in refused("--input", folder)
    draw(folder / "a.png")
    assert "written over" in refused("--input", folder / "a.png", "--output", folder)
    assert "give another" in refused("--input", folder, "--output", folder)
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused("--input", folder, "--output", tmp_path / "file" / "x")
    Image.open(folder / "a.png").save(folder / "a.jpg")  # beside its output's name, another input
    assert command("--input", folder, "--output", folder / "out") == 0
    assert command("--input", folder, "--output", folder / "out") == 0  # earlier translations are no inputs
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "a.png.png"]
