"""Preparing Cityscapes, AFHQ and aligned pairs, from small trees made here in the official layouts."""

from __future__ import annotations

import functools
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from archives import picture, zipped
from PIL import Image

from datasets.aligned_pairs import join_pairs, split_pairs
from datasets.conversion import Conversion, ImageSource, convert_all
from datasets.prepare_afhq import prepare_afhq
from datasets.prepare_cityscapes import main as prepare_cityscapes_main
from datasets.prepare_cityscapes import prepare_cityscapes
from util.errors import UserError


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# ---- conversion ----


def test_conversion_goes_on_where_it_stopped(tmp_path):
    made = []

    def make(number: int) -> Image.Image:
        made.append(number)
        if number == 2 and made.count(2) == 1:
            raise UserError("image 2 is broken")
        return Image.new("RGB", (4, 4))

    wanted = [Conversion(tmp_path / f"{n}.png", functools.partial(make, n), (4, 4)) for n in range(5)]
    with pytest.raises(UserError, match="image 2 is broken"):
        convert_all(wanted, "test", workers=1)
    whole = {int(path.stem) for path in tmp_path.glob("*.png")}
    assert {0, 1} <= whole and 2 not in whole
    made.clear()
    made.append(2)
    assert convert_all(wanted, "test", workers=1) == 5 - len(whole)
    assert sorted(made[1:]) == sorted(set(range(5)) - whole)
    assert convert_all(wanted, "test") == 0
    Image.new("RGB", (2, 2)).save(tmp_path / "3.png")  # of an earlier run with another size
    assert convert_all(wanted, "test") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.png" for n in range(5)]


def test_a_source_is_a_folder_or_an_archive(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "set").mkdir()
    Image.new("RGB", (8, 5)).save(tmp_path / "set/_c.jpe", exif=exif, format="PNG")
    picture(tmp_path / "set/a.png", mode="RGBA", colour=(1, 2, 3, 255))
    (tmp_path / "set/b.JPG").write_bytes(b"broken")
    (tmp_path / "set/.hidden.png").write_bytes(b"")
    (tmp_path / "set/notes.txt").write_text("")
    zipped(tmp_path / "set", tmp_path / "set.zip")
    sources = {"": ImageSource(tmp_path / "set"), "set/": ImageSource(tmp_path / "set.zip")}
    assert capsys.readouterr().err.count("1 of '.txt'") == 2
    for prefix, source in sources.items():
        assert source.images == [f"{prefix}_c.jpe", f"{prefix}a.png", f"{prefix}b.JPG"]
        assert source.read(f"{prefix}a.png").getpixel((0, 0)) == (1, 2, 3)
        assert source.read(f"{prefix}_c.jpe").size == (5, 8)  # upright
        with pytest.raises(UserError, match="b.JPG': it is not an image"):
            source.read(f"{prefix}b.JPG")
    with pytest.raises(UserError, match="does not exist"):
        ImageSource(tmp_path / "no")
    with pytest.raises(UserError, match="neither a folder nor a whole zip"):
        ImageSource(tmp_path / "set/b.JPG")


# ---- Cityscapes ----


@pytest.fixture
def cityscapes(tmp_path):
    """The official layout, one 64 x 32 image per city; label maps are red on the left, blue on the right."""
    label = Image.new("RGBA", (64, 32), (255, 0, 0, 255))
    label.paste((0, 0, 255, 255), (33, 0, 64, 32))  # an edge that no interpolation could keep
    for phase, city in (("train", "aachen"), ("train", "bonn"), ("val", "lindau")):
        stem = f"{city}_000000_000019"
        picture(tmp_path / f"leftImg8bit/{phase}/{city}/{stem}_leftImg8bit.png", (64, 32), (50, 100, 150))
        labels = tmp_path / f"gtFine/{phase}/{city}"
        labels.mkdir(parents=True)
        label.save(labels / f"{stem}_gtFine_color.png")
        picture(labels / f"{stem}_gtFine_labelIds.png", (64, 32), 3, "L")
    picture(tmp_path / "leftImg8bit/test/berlin/berlin_0_leftImg8bit.png")
    return tmp_path


@pytest.mark.parametrize("as_archive", [False, True])
def test_cityscapes(cityscapes, as_archive):
    photos, labels = cityscapes / "leftImg8bit", cityscapes / "gtFine"
    if as_archive:
        photos, labels = zipped(photos, cityscapes / "photos.zip"), zipped(labels, cityscapes / "labels.zip")
    out = cityscapes / "out"
    assert prepare_cityscapes(photos, labels, out, size=16) == 6
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    train = ["aachen_000000_000019.png", "bonn_000000_000019.png"]
    assert made == [f"train{side}/{name}" for side in "AB" for name in train] + [
        f"val{side}/lindau_000000_000019.png" for side in "AB"
    ]
    photo, label = (pixels(out / f"valA/{made[-1][5:]}"), pixels(out / made[-1]))
    assert photo.shape == label.shape == (16, 16, 3)
    assert (photo == (50, 100, 150)).all()
    assert {tuple(colour) for colour in label.reshape(-1, 3)} == {(255, 0, 0), (0, 0, 255)}
    assert prepare_cityscapes(photos, labels, out, size=16) == 0


def test_cityscapes_that_is_not_whole(cityscapes, capsys):
    photos, labels, out = cityscapes / "leftImg8bit", cityscapes / "gtFine", cityscapes / "out"
    with pytest.raises(UserError, match="holds no leftImg8bit/train/CITY"):
        prepare_cityscapes(labels, labels, out)
    next((labels / "train/bonn").glob("*_color.png")).unlink()
    with pytest.raises(UserError, match=r"1 images have no label map \(train/bonn_000000_000019\)"):
        prepare_cityscapes(photos, labels, out)
    shutil.rmtree(labels / "val")
    status = prepare_cityscapes_main(
        ["--leftImg8bit", str(photos), "--gtFine", str(labels), "--out", str(out)]
    )
    assert status == 2 and "error: " in capsys.readouterr().err
    assert not out.exists()


# ---- AFHQ ----


@pytest.mark.parametrize("test_phase", ["val", "test"])
def test_afhq(tmp_path, test_phase):
    for phase in ("train", test_phase):
        picture(tmp_path / f"afhq/{phase}/cat/c.jpg", (32, 32), (200, 0, 0))
        picture(tmp_path / f"afhq/{phase}/dog/d.png", (32, 32), (0, 200, 0))
        picture(tmp_path / f"afhq/{phase}/wild/w.jpg", (32, 32))
    for source in (tmp_path / "afhq", zipped(tmp_path / "afhq", tmp_path / "afhq.zip")):
        out = tmp_path / f"from_{source.name}"
        assert prepare_afhq(source, out, size=16) == 4
        assert (pixels(out / "testB/d.png") == (0, 200, 0)).all()
        assert pixels(out / "trainA/c.png").shape == (16, 16, 3)
    picture(tmp_path / "afhq/train/cat/c.png")
    with pytest.raises(UserError, match="two images would become .*c.png"):
        prepare_afhq(tmp_path / "afhq", tmp_path / "out")
    shutil.rmtree(tmp_path / f"afhq/{test_phase}/dog")
    with pytest.raises(UserError, match="no images for testB"):
        prepare_afhq(tmp_path / "afhq", tmp_path / "out")


# ---- aligned pairs ----


def test_split_and_join_undo_each_other(tmp_path):
    pair = np.random.default_rng(0).integers(0, 256, (6, 16, 3), dtype=np.uint8)
    (tmp_path / "pairs/train/deep").mkdir(parents=True)
    Image.fromarray(pair).save(tmp_path / "pairs/train/deep/1.png")
    assert split_pairs(tmp_path / "pairs", tmp_path / "folders") == 2
    assert (pixels(tmp_path / "folders/trainA/deep/1.png") == pair[:, :8]).all()
    assert (pixels(tmp_path / "folders/trainB/deep/1.png") == pair[:, 8:]).all()
    assert join_pairs(tmp_path / "folders", tmp_path / "again") == 1
    assert (pixels(tmp_path / "again/train/deep/1.png") == pair).all()


def test_no_picture_is_lost_or_changed_in_silence_by_joining(tmp_path, capsys):
    for side in "AB":
        picture(tmp_path / f"train{side}/_DSC0001.png", mode="I;16", colour=2000)
        Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / f"train{side}/_DSC0002.tif")
        (tmp_path / f"train{side}/_DSC0003.psd").write_bytes(b"")
    assert join_pairs(tmp_path, tmp_path / "pairs") == 2
    assert (pixels(tmp_path / "pairs/train/_DSC0001.png") == round(2000 * 255 / 4095)).all()
    said = capsys.readouterr().err
    assert said.count("4095 as white") == 2 and said.count("left out") == 2 and "1 of '.psd'" in said
    picture(tmp_path / "trainA/_DSC0002.jpg")
    with pytest.raises(UserError, match="_DSC0002.jpg and _DSC0002.tif would be one pair"):
        join_pairs(tmp_path, tmp_path / "pairs")


def test_pairs_that_are_none(tmp_path):
    picture(tmp_path / "odd/train/1.png", (7, 4))
    with pytest.raises(UserError, match="7 pixels wide"):
        split_pairs(tmp_path / "odd", tmp_path / "out")
    picture(tmp_path / "uneven/trainA/1.jpg", (4, 4))
    picture(tmp_path / "uneven/trainB/1.png", (8, 4))
    with pytest.raises(UserError, match="4 x 4 in A and 8 x 4 in B"):
        join_pairs(tmp_path / "uneven", tmp_path / "out")
    picture(tmp_path / "uneven/trainA/2.png")
    with pytest.raises(UserError, match="1 images of trainA and trainB have no partner .*such as 2"):
        join_pairs(tmp_path / "uneven", tmp_path / "out")
    for convert in (split_pairs, join_pairs):
        with pytest.raises(UserError, match="holds no images"):
            convert(tmp_path / "none", tmp_path / "out")


# ---- help


@pytest.mark.parametrize("script", ["make_stripes", "prepare_afhq", "prepare_cityscapes", "unpack_dataset"])
def test_help_names_every_default(script, capsys):
    module = importlib.import_module(f"datasets.{script}")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    optional = capsys.readouterr().out.split("options:")[1].split("\n  -")[1:]
    required = ("--afhq", "--leftImg8bit", "--gtFine", "h, --help")
    for text in optional:
        assert "default: " in " ".join(text.split()) or f"-{text}".startswith(required) or text[:1] == "h"
