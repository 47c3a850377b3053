"""scripts/contact_sheet.py: one picture of the first images of several folders."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from scripts import contact_sheet as script
from scripts.contact_sheet import GAP, contact_sheet


@pytest.fixture
def results(tmp_path):
    """Five inputs and translations as test.py leaves them, of one colour each."""
    for label, blue in (("real_A", 0), ("fake_B", 255)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(5):
            colour = (40 * number, 0, blue)
            Image.new("RGB", (30, 20), colour).save(tmp_path / "images" / label / f"{number}.png")
    return tmp_path


def test_each_image_stands_above_its_translation_in_bands(results):
    folders = [results / "images" / label for label in ("real_A", "fake_B")]
    sheet = contact_sheet(folders, count=4, columns=3, side=16)
    pitch = 16 + GAP
    assert sheet.size == (3 * pitch + GAP, 4 * pitch + GAP)
    middles = np.asarray(sheet)[GAP + 8 :: pitch, GAP + 8 :: pitch]  # (rows, columns, 3)
    white = [255, 255, 255]
    assert middles.tolist() == [
        [[0, 0, 0], [40, 0, 0], [80, 0, 0]],
        [[0, 0, 255], [40, 0, 255], [80, 0, 255]],
        [[120, 0, 0], white, white],
        [[120, 0, 255], white, white],
    ]


def test_the_command_writes_jpeg_or_png(results, tmp_path, capsys):
    for name in ("sheets/a.jpg", "a.png"):
        words = ["--results", str(results), "--output", str(tmp_path / name), "--side", "32"]
        assert script.main(words) == 0
        assert Image.open(tmp_path / name).size == (6 * 36 + 4, 2 * 36 + 4)
    assert "a.png: 220 x 76" in capsys.readouterr().out


def test_what_is_missing_is_named(results, tmp_path, capsys):
    (results / "images/fake_B/3.png").unlink()
    assert script.main(["--results", str(results)]) == 2
    assert "fake_B has no image 3, which is in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main([])
    assert "give either --results FOLDER or --folders DIR,DIR" in capsys.readouterr().err
    unknown = ["--results", str(results), "--count", "2", "--output", str(tmp_path / "sheet.xyz")]
    assert script.main(unknown) == 2
    assert "give another --output" in capsys.readouterr().err
