"""Two folders become a data set; near-duplicates stay on one side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.split_dataset import main


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Twelve scenes in each folder, four of them thrice: as JPEG, smaller, and a little brighter."""
    generator = np.random.default_rng(0)
    for folder in ("horses", "zebras/deep"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(12):
            small = Image.fromarray(generator.integers(0, 230, (12, 12, 3), np.uint8))
            scene = small.resize((96, 64), Image.Resampling.BICUBIC)
            scene.save(tmp_path / folder / f"{number}_0.png")
            if number < 4:
                scene.save(tmp_path / folder / f"{number}_1.jpg", quality=60)
                scene.resize((60, 40)).point(lambda value: value + 9).save(
                    tmp_path / folder / f"{number}_2.png"
                )
    return tmp_path


def scenes(folder: Path) -> set[str]:
    return {path.name.split("_")[0] for path in folder.rglob("*.*")}


@pytest.mark.parametrize(("share", "count"), [("25%", 5), ("3", 3)])
def test_a_set_is_split_without_near_duplicates_across(folders, share, count):
    out = folders / "a set"
    assert main([str(folders / "horses"), str(folders / "zebras"), str(out), "--test", share]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["testA", "testB", "trainA", "trainB"]
    for side in "AB":
        train, test = out / f"train{side}", out / f"test{side}"
        assert len(list(test.rglob("*.*"))) == count and len(list(train.rglob("*.*"))) == 20 - count
        assert not scenes(train) & scenes(test)
    assert (out / "trainB/deep").is_dir()


def test_wrong_calls_are_one_line_and_leave_nothing(folders, capsys):
    horses, zebras = str(folders / "horses"), str(folders / "zebras")
    for words, message in (
        ([horses, zebras, horses], "exists already"),
        ([horses, zebras, str(folders / "out"), "--test", "100%"], "20 of 20 images"),
        ([horses, str(folders / "none"), str(folders / "out")], "does not exist"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in folders.iterdir()) == ["horses", "zebras"]
