"""scripts/contact_sheet.py: one picture of the first images of several folders."""

import numpy as np
from PIL import Image

from scripts import contact_sheet


def test_each_image_stands_above_its_translation_in_bands(tmp_path, capsys):
    for label, blue in (("real_A", 0), ("fake_B", 255)):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (30, 20), (40 * number, 0, blue)).save(folder / f"{number}.png")
    words = f"--results {tmp_path} --side 16 --count 4 --columns 3 --output {tmp_path}/sheets/".split()

    def sheet(name: str) -> int:
        return contact_sheet.main([*words[:-1], words[-1] + name])

    assert sheet("a.jpg") == sheet("a.png") == 0 and sheet("sheet.xyz") == 2
    assert "a.png: 60 x 80" in capsys.readouterr().out
    white = [255, 255, 255]
    assert np.asarray(Image.open(tmp_path / "sheets/a.png"))[10::20, 10::20].tolist() == [
        [[0, 0, 0], [40, 0, 0], [80, 0, 0]],
        [[0, 0, 255], [40, 0, 255], [80, 0, 255]],
        [[120, 0, 0], white, white],
        [[120, 0, 255], white, white],
    ]
    (tmp_path / "images/fake_B/3.png").unlink()
    assert sheet("b.png") == 2
    assert "fake_B has no image 3, which is in" in capsys.readouterr().err
