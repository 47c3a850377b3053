"""The scripts that check and split a set of images, and train.py's quick check."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.datasets import UnalignedDataset
from data.folders import quick_check
from data.transforms import Preprocess
from scripts import check_dataset, split_dataset
from util.image_files import ImageError


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    for number, folder in enumerate(("trainA", "trainB", "testA", "testB")):
        (tmp_path / folder).mkdir()
        generator = np.random.default_rng(number)
        for name in range(4):
            pixels = generator.integers(0, 256, (32, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def spoil(root: Path) -> None:
    """One of each problem."""
    Image.open(root / "trainA" / "0.png").save(root / "testA" / "copy.bmp")
    (root / "trainB" / "1.png").write_bytes((root / "trainB" / "1.png").read_bytes()[:100])
    Image.new("RGB", (40, 40), (9, 9, 9)).save(root / "testB" / "flat.png")
    Image.effect_noise((8, 40), 50).save(root / "testB" / "small.png")


def test_every_problem_is_found_and_named(clean, capsys):
    assert check_dataset.main([str(clean)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "trainA: 4 images" and lines[-1] == "No problems found."
    spoil(clean)
    assert check_dataset.main([str(clean)]) == 1
    _, *problems = capsys.readouterr().out.partition("4 problems:")[2].splitlines()
    expected = (
        "testB: 1 of nearly one colour: .*flat.png",
        "testB: 1 shorter side below 16 pixels: .*small.png",
        "trainA and testA: the same picture 2 times: .*copy.bmp",
        "trainB: 1 unusable .it is damaged.*1.png",
    )
    assert all(re.match(line, found) for line, found in zip(expected, sorted(problems), strict=True))
    assert check_dataset.main([str(clean / "nowhere")]) == 2


def test_before_training_a_broken_file_stops_unless_such_are_skipped(clean):
    def check(**how) -> list[str]:
        return quick_check(UnalignedDataset(clean, "train", Preprocess(crop_size=16), **how))

    assert check() == []
    spoil(clean)
    with pytest.raises(ImageError, match="1.png': it is damaged"):
        check()
    (problem,) = check(on_bad_image="skip")
    assert "1.png" in problem


# ---- splitting ----


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Twelve scenes in each folder, four of them thrice: as JPEG, smaller, and a little brighter."""
    generator = np.random.default_rng(0)
    for folder in (tmp_path / "horses", tmp_path / "zebras/deep"):
        folder.mkdir(parents=True)
        for number in range(12):
            small = Image.fromarray(generator.integers(0, 230, (12, 12, 3), np.uint8))
            scene = small.resize((96, 64), Image.Resampling.BICUBIC)
            scene.save(folder / f"{number}_0.png")
            if number < 4:
                scene.save(folder / f"{number}_1.jpg", quality=60)
                scene.resize((60, 40)).point(lambda value: value + 9).save(folder / f"{number}_2.png")
    return tmp_path


@pytest.mark.parametrize(("share", "count"), [("25%", 5), ("3", 3)])
def test_a_set_is_split_without_near_duplicates_across(scenes, share, count):
    out = scenes / "a set"
    words = [str(scenes / "horses"), str(scenes / "zebras"), str(out), "--test", share]
    assert split_dataset.main(words) == 0
    assert sorted(path.name for path in out.iterdir()) == ["testA", "testB", "trainA", "trainB"]
    for side in "AB":
        train, test = (
            [path.name.split("_")[0] for path in (out / f"{part}{side}").rglob("*.*")]
            for part in ("train", "test")
        )
        assert (len(test), len(train)) == (count, 20 - count) and not set(train) & set(test)
    assert (out / "trainB/deep").is_dir()
