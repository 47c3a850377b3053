"""scripts/contact_sheet.py: one picture of the first images of several folders."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from scripts import contact_sheet as script
from scripts.contact_sheet import contact_sheet


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
    assert sheet.size == (3 * 20, 4 * 20)
    white = [255, 255, 255]
    assert np.asarray(sheet)[10::20, 10::20].tolist() == [  # the middles of rows of images
        [[0, 0, 0], [40, 0, 0], [80, 0, 0]],
        [[0, 0, 255], [40, 0, 255], [80, 0, 255]],
        [[120, 0, 0], white, white],
        [[120, 0, 255], white, white],
    ]


def test_the_command_writes_a_picture_or_names_what_is_missing(results, tmp_path, capsys):
    words = ["--results", str(results), "--side", "32", "--output"]
    for name in ("sheets/a.jpg", "a.png"):
        assert script.main([*words, str(tmp_path / name)]) == 0
        assert Image.open(tmp_path / name).size == (6 * 36, 2 * 36)
    assert "a.png: 216 x 72" in capsys.readouterr().out
    assert script.main([*words, str(tmp_path / "sheet.xyz")]) == 2
    assert "give another --output" in capsys.readouterr().err
    (results / "images/fake_B/3.png").unlink()
    assert script.main([*words, str(tmp_path / "b.png")]) == 2
    assert "fake_B has no image 3, which is in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main([])
