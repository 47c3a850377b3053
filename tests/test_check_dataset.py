"""The data set's check: what it finds, as a user runs it and as train.py does before it starts."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import preflight
from data.preflight import look_at, quick_check
from scripts.check_dataset import main
from util.errors import UserError
from util.image_files import ImageError, list_images


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
    Image.open(root / "trainB" / "0.png").convert("L").save(root / "trainB" / "grey.png")
    (root / "trainB" / "1.png").write_bytes((root / "trainB" / "1.png").read_bytes()[:100])
    Image.new("RGB", (40, 40), (9, 9, 9)).save(root / "testB" / "flat.png")
    Image.effect_noise((8, 40), 50).save(root / "testB" / "small.png")


def test_a_clean_set_ends_with_0_and_a_table(clean, capsys):
    assert main([str(clean)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["folder", "images", "decoded", "unreadable"]
    assert lines[1].split() == ["trainA", "4", "4", "0", "40", "x", "32", "RGB", "4"]
    assert lines[-1] == "No problems found."


def test_every_problem_is_found_and_named(clean, capsys):
    spoil(clean)
    assert main([str(clean)]) == 1
    out = capsys.readouterr().out
    problems = out[out.index("4 problems:") :].splitlines()[1:]
    assert [line.split(":")[0] for line in problems[:1]] == ["trainB"] and "1.png" in problems[0]
    assert "damaged or cut short" in problems[0]
    assert "testB: 1 of nearly one colour: " in problems[1] and "flat.png" in problems[1]
    assert "testB: 1 shorter side below 16 pixels: " in problems[2] and "small.png" in problems[2]
    assert "trainA and testA: the same picture 2 times: " in problems[3] and "copy.bmp" in problems[3]


def test_the_same_for_machines(clean, capsys):
    spoil(clean)
    assert main([str(clean), "--json", "--min_side", "4"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["folders"]["trainB"]["images"] == 5 and report["folders"]["trainB"]["decoded"] == 4
    assert report["folders"]["trainB"]["modes"] == {"RGB": 3, "L": 1}
    assert report["folders"]["testA"]["sizes"] == {"40x32": 5}
    assert len(report["problems"]) == 3
    assert [list(places) for places in report["copies"]] == [["trainA", "testA"]]


def test_wrong_calls_end_with_2(clean, tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: the image folder ")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2


def test_the_same_pixels_are_the_same_content_whatever_the_format(clean):
    image = clean / "trainA" / "0.png"
    Image.open(image).save(clean / "copy.bmp")
    first, second = look_at(image), look_at(clean / "copy.bmp")
    assert first.content == second.content and first.size == (40, 32)
    Image.fromarray(np.asarray(Image.open(image)).reshape(40, 32, 3)).save(clean / "reshaped.png")
    assert look_at(clean / "reshaped.png").content != first.content


def test_a_short_look_keeps_to_its_time_and_samples_every_folder(tmp_path, monkeypatch):
    """On a clock that advances a second per image decoded."""
    noise = Image.effect_noise((20, 20), 50)
    for folder in ("trainA", "trainB"):
        (tmp_path / folder).mkdir()
        noise.save(tmp_path / folder / "0.png")
        for number in range(1, 300):
            (tmp_path / folder / f"{number}.png").symlink_to(tmp_path / folder / "0.png")
    looked = []
    monkeypatch.setattr(preflight, "look_at", lambda path, _: looked.append(path) or look_at(path))
    folders = {name: list_images(tmp_path / name) for name in ("trainA", "trainB")}
    report = preflight.inspect(folders, seconds=20, clock=lambda: float(len(looked)))
    assert all(0 < len(findings) < 300 for findings in report.findings.values())
    # 4 to 32 images are decoded between two looks at the clock
    assert 20 < len(looked) <= 20 + 2 * 32


def test_before_training_a_broken_file_stops_unless_such_are_skipped(clean):
    opt = Namespace(
        dataroot=str(clean),
        phase="train",
        direction="AtoB",
        dataset_mode="unaligned",
        max_dataset_size=float("inf"),
        preprocess="resize_and_crop",
        crop_size=16,
        on_bad_image="stop",
        grey_range="auto",
    )
    assert quick_check(opt) == []
    spoil(clean)
    with pytest.raises(ImageError, match="1.png': it is damaged"):
        quick_check(opt)
    opt.on_bad_image = "skip"
    (problem,) = quick_check(opt)
    assert "1.png" in problem
    opt.dataroot += "/nowhere"
    with pytest.raises(UserError, match="make_stripes"):
        quick_check(opt)


def test_how_deep_grey_is_read_is_said(tmp_path, capsys):
    for folder in ("trainA", "trainB"):
        (tmp_path / folder).mkdir()
        for name in range(2):
            ramp = np.linspace(0, 4095 - name, 40 * 40).reshape(40, 40).astype(np.uint16)
            Image.fromarray(ramp).save(tmp_path / folder / f"{folder}{name}.png")
    main([str(tmp_path)])
    said = "trainA: grey images of more than 8 bits are read with 0 as black and 4095 as white (--grey_range"
    assert said in capsys.readouterr().out
    main([str(tmp_path), "--grey_range", "0,65535"])
    assert "65535 as white" in capsys.readouterr().out
