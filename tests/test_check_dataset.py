"""The data set's check: what it finds, as a user runs it and as train.py does before it starts."""

from __future__ import annotations

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
    (root / "trainB" / "1.png").write_bytes((root / "trainB" / "1.png").read_bytes()[:100])
    Image.new("RGB", (40, 40), (9, 9, 9)).save(root / "testB" / "flat.png")
    Image.effect_noise((8, 40), 50).save(root / "testB" / "small.png")


def test_every_problem_is_found_and_named(clean, capsys):
    assert main([str(clean)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "trainA: 4 images (4 of 40 x 32 RGB)" and lines[-1] == "No problems found."
    spoil(clean)
    assert main([str(clean)]) == 1
    _, *problems = capsys.readouterr().out.partition("4 problems:")[2].splitlines()
    for line, (what, name) in zip(
        sorted(problems),
        (
            ("testB: 1 of nearly one colour: ", "flat.png"),
            ("testB: 1 shorter side below 16 pixels: ", "small.png"),
            ("trainA and testA: the same picture 2 times: ", "copy.bmp"),
            ("trainB: 1 unusable (it is damaged", "1.png"),
        ),
        strict=True,
    ):
        assert line.startswith(what) and name in line
    assert main([str(clean / "nowhere")]) == 2


def test_the_same_pixels_are_the_same_content_whatever_the_format(clean):
    image = clean / "trainA" / "0.png"
    Image.open(image).save(clean / "copy.bmp")
    first, second = look_at("", image), look_at("", clean / "copy.bmp")
    assert first.content == second.content and first.size == (40, 32)
    Image.fromarray(np.asarray(Image.open(image)).reshape(40, 32, 3)).save(clean / "reshaped.png")
    assert look_at("", clean / "reshaped.png").content != first.content


def test_a_short_look_samples_every_folder(clean, monkeypatch):
    """On a clock that advances a second per look at it."""
    ticks = iter(range(100))
    monkeypatch.setattr(preflight.time, "monotonic", lambda: next(ticks))
    folders = {name: list_images(clean / name) for name in ("trainA", "trainB")}
    findings = preflight.inspect(folders, dict.fromkeys(folders), seconds=6)
    assert len(findings) == 5 and {finding.folder for finding in findings} == {"trainA", "trainB"}


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
        ramp = np.linspace(0, 4095, 40 * 40).reshape(40, 40).astype(np.uint16)
        Image.fromarray(ramp).save(tmp_path / folder / "0.png")
    main([str(tmp_path)])
    said = "trainA: grey images of more than 8 bits are read with 0 as black and 4095 as white (--grey_range"
    assert said in capsys.readouterr().out
    main([str(tmp_path), "--grey_range", "0,65535"])
    assert "65535 as white" in capsys.readouterr().out
