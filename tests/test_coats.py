"""The drawn set of four coats, and the measure that tells them apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.make_coats import make_coats
from datasets.make_stripes import COATS, draw_animal_scene
from util.metrics.coats import Coats


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "coats"
    assert make_coats(folder, train=1, test=20)
    return folder


def test_layout(drawn):
    counts = {path.relative_to(drawn).as_posix(): len(list(path.glob("*.png"))) for path in drawn.glob("*/*")}
    phases = {"train": 1, "test": 20, "masks": 20}
    assert counts == {f"{phase}/{coat}": count for phase, count in phases.items() for coat in COATS}


def test_plain_and_striped_animals_are_drawn_as_before():
    """The pictures of make_stripes.py are those drawn before there were other coats."""
    pixels = [draw_animal_scene(np.random.default_rng(5), 32, coat)[0].tobytes() for coat in COATS]
    plain, striped, *_ = (hashlib.sha256(picture).hexdigest()[:16] for picture in pixels)
    assert (plain, striped) == ("3010566ae7ac7e9b", "71224fc043bc0619")
    assert len(set(pixels)) == len(COATS)


def test_real_animals_count_as_what_they_are(drawn):
    coats = Coats(drawn, tuple(COATS))
    same = {coat: coats.report(coat, coat, drawn / "test" / coat) for coat in COATS}
    assert {coat: report["background"] for coat, report in same.items()} == dict.fromkeys(COATS, 0)
    assert [report["taken"] for report in same.values()] == pytest.approx([0.85, 1, 1, 1])
    assert coats.report("plain", "ginger", drawn / "test" / "plain")["taken"] <= 0.15


def test_one_of_two_translations_has_the_coat_on_another_ground(drawn, tmp_path):
    ginger = drawn / "test" / "ginger"
    Image.open(ginger / "0000.png").point(lambda level: level // 2).save(tmp_path / "0000.png")
    picture = np.asarray(Image.open(ginger / "0001.png"))
    mask = np.asarray(Image.open(drawn / "masks" / "ginger" / "0001.png"))[..., None] > 0
    Image.fromarray(np.where(mask, picture, picture // 2)).save(tmp_path / "0001.png")
    report = Coats(drawn, tuple(COATS)).report("ginger", "ginger", tmp_path)
    assert report["taken"] == 0.5 and report["background"] > 30
