"""Preparing Cityscapes, AFHQ and aligned pairs, from small trees made here in the official layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from archives import picture, zipped
from PIL import Image

from datasets.aligned_pairs import join_pairs, split_pairs
from datasets.prepare import ImageSource, convert_all, main, prepare_afhq, prepare_cityscapes
from util.errors import UserError


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_conversion_goes_on_where_it_stopped(tmp_path):
    made, broken = [], {2}

    def conversion(number: int):
        def make() -> Image.Image:
            made.append(number)
            if number in broken:
                raise UserError("image 2 is broken")
            return Image.new("RGB", (4, 4))

        return tmp_path / f"{number}.png", make

    wanted = [conversion(number) for number in range(5)]
    with pytest.raises(UserError, match="image 2 is broken"):
        convert_all(wanted, "test")
    whole = {int(path.stem) for path in tmp_path.glob("*.png")}
    broken.clear()
    made.clear()
    assert convert_all(wanted, "test") == 5 - len(whole)
    assert sorted(made) == sorted(set(range(5)) - whole)
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
    with pytest.raises(UserError, match="neither a folder nor a whole zip"):
        ImageSource(tmp_path / "set/b.JPG")


@pytest.mark.parametrize("as_archive", [False, True])
def test_cityscapes(tmp_path, capsys, as_archive):
    """Label maps are red on the left, blue on the right, at an edge that no interpolation could keep."""
    label = Image.new("RGBA", (64, 32), (255, 0, 0, 255))
    label.paste((0, 0, 255, 255), (33, 0, 64, 32))
    for phase, city in (("train", "aachen"), ("train", "bonn"), ("val", "lindau")):
        picture(tmp_path / f"leftImg8bit/{phase}/{city}/{city}_leftImg8bit.png", (64, 32), (50, 100, 150))
        picture(tmp_path / f"gtFine/{phase}/{city}/{city}_gtFine_labelIds.png", (64, 32), 3, "L")
        label.save(tmp_path / f"gtFine/{phase}/{city}/{city}_gtFine_color.png")
    picture(tmp_path / "leftImg8bit/test/berlin/berlin_leftImg8bit.png")
    photos, labels, out = tmp_path / "leftImg8bit", tmp_path / "gtFine", tmp_path / "out"
    if as_archive:
        photos, labels = zipped(photos, tmp_path / "photos.zip"), zipped(labels, tmp_path / "labels.zip")
    assert prepare_cityscapes(photos, labels, out, 16) == 6
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    train = [f"train{side}/{city}.png" for side in "AB" for city in ("aachen", "bonn")]
    assert made == [*train, "valA/lindau.png", "valB/lindau.png"]
    assert (pixels(out / "valA/lindau.png") == (50, 100, 150)).all()
    colours = pixels(out / "valB/lindau.png").reshape(16 * 16, 3)
    assert {tuple(colour) for colour in colours} == {(255, 0, 0), (0, 0, 255)}
    shutil.rmtree(tmp_path / "gtFine/val")
    assert main(["cityscapes", str(photos), str(tmp_path / "gtFine"), "--out", str(tmp_path / "no")]) == 2
    assert "(such as val/lindau)" in capsys.readouterr().err


@pytest.mark.parametrize("test_phase", ["val", "test"])
def test_afhq(tmp_path, test_phase):
    for phase in ("train", test_phase):
        picture(tmp_path / f"afhq/{phase}/cat/c.jpg", (32, 32), (200, 0, 0))
        picture(tmp_path / f"afhq/{phase}/dog/d.png", (32, 32), (0, 200, 0))
        picture(tmp_path / f"afhq/{phase}/wild/w.jpg", (32, 32))
    for source in (tmp_path / "afhq", zipped(tmp_path / "afhq", tmp_path / "afhq.zip")):
        out = tmp_path / f"from_{source.name}"
        assert prepare_afhq(source, out, 16) == 4
        assert (pixels(out / "testB/d.png") == (0, 200, 0)).all()
        assert pixels(out / "trainA/c.png").shape == (16, 16, 3)
    picture(tmp_path / "afhq/train/cat/c.png")
    with pytest.raises(UserError, match="two images would become .*c.png"):
        prepare_afhq(tmp_path / "afhq", tmp_path / "out", 16)
    shutil.rmtree(tmp_path / f"afhq/{test_phase}/dog")
    with pytest.raises(UserError, match="no images for testB"):
        prepare_afhq(tmp_path / "afhq", tmp_path / "out", 16)


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
    with pytest.raises(UserError, match="two images would become .*_DSC0002.png"):
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
