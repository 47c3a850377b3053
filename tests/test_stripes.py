"""The drawn sets and the measures of stripes and coats: same seed, same files; zebras read high."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from datasets.make_stripes import COATS, draw_animal_scene, main, make_coats, make_stripes
from util.metrics.stripes import Coats, background_change, stripe_report, stripedness


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "stripes"
    assert make_stripes(folder, size=48, train=2, test=8, seed=3)
    return folder


@pytest.fixture(scope="module")
def coats(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "coats"
    assert make_coats(folder, train=1, test=20)
    return folder


# ---- the sets


def test_layout_and_formats(drawn, coats):
    def counts(root: Path) -> Counter[str]:
        return Counter(name.rpartition("/")[0] for name in contents(root))

    test = {"testA": 8, "testB": 8, "masks/testA": 8, "masks/testB": 8}
    assert counts(drawn) == {"trainA": 2, "trainB": 2, **test}
    each = [(f"train/{coat}", 1) for coat in COATS] + [
        (f"{p}/{coat}", 20) for p in ("test", "masks") for coat in COATS
    ]
    assert counts(coats) == dict(each)
    image, mask = (Image.open(drawn / folder / "0003.png") for folder in ("testB", "masks/testB"))
    assert (image.mode, image.size, mask.mode, mask.size) == ("RGB", (48, 48), "L", (48, 48))
    values = np.asarray(mask)
    assert set(np.unique(values)) == {0, 255} and 0.08 < (values > 0).mean() < 0.6


def test_same_seed_same_files_and_no_scene_twice(drawn, tmp_path):
    make_stripes(tmp_path / "more", size=48, train=3, test=1, seed=3)
    make_stripes(tmp_path / "other", size=48, train=1, test=1, seed=4)
    first, more = contents(drawn), contents(tmp_path / "more")
    assert all(more[name] == first[name] for name in more.keys() & first.keys())
    assert contents(tmp_path / "other")["trainA/0000.png"] != first["trainA/0000.png"]
    pictures = [data for name, data in first.items() if "masks" not in name]
    assert len(set(pictures)) == len(pictures) == 20


def test_the_pictures_are_those_drawn_before():
    pixels = [draw_animal_scene(np.random.default_rng(5), 32, coat)[0].tobytes() for coat in COATS]
    found = [hashlib.sha256(picture).hexdigest()[:16] for picture in pixels]
    assert found == ["3010566ae7ac7e9b", "71224fc043bc0619", "c37e3d363e1858c1", "43ccf6b841bc337e"]


def test_a_set_is_left_alone_and_one_of_other_parameters_replaced(tmp_path, capsys):
    out = tmp_path / "stripes"
    words = ["--out", str(out), "--size", "16", "--train", "2", "--test", "1"]
    assert [main(words), main(words), main([*words, "--seed", "1"])] == [0, 0, 0]
    lines = capsys.readouterr().out.splitlines()
    assert ["drew" in line for line in lines] == [True, False, True]
    assert [path.name for path in tmp_path.iterdir()] == ["stripes"]  # nothing temporary stays behind
    (tmp_path / "holiday.jpg").write_text("mine")
    assert main(["--out", str(tmp_path)]) == 2
    for wrong in ("--size=8", "--train=0"):
        with pytest.raises(SystemExit):
            main([*words, wrong])
    assert (tmp_path / "holiday.jpg").read_text() == "mine" and (out / "trainA").is_dir()


# ---- the measures


def ellipse(size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size - 0.5
    return (x / 0.36) ** 2 + (y / 0.17) ** 2 < 1  # (size, size)


def painted(pattern: np.ndarray) -> np.ndarray:
    """A coat of brightness `pattern`, (H, W) in 0..1, on a mid-grey ground: (H, W, 3) in 0..255."""
    return np.where(ellipse(len(pattern)), pattern * 255, 120.0)[..., None].repeat(3, axis=2)


def bands(size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size
    return 0.5 + 0.45 * np.sign(np.sin(2 * np.pi * (11 * x + 2 * y * y)))


def test_stripes_read_high_and_everything_else_low():
    mask, rng = ellipse(), np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    others = {
        "plain": np.full((64, 64), 0.6),
        "shaded from above": 1 - y / 64,
        "pixel noise": np.clip(rng.normal(0.5, 0.25, (64, 64)), 0, 1),
        "black and white noise": rng.integers(0, 2, (64, 64)).astype(float),
        "blots": np.kron(rng.integers(0, 2, (32, 32)), np.ones((2, 2))),
        "checks": ((x // 3 + y // 3) % 2).astype(float),
        "stripes blurred away": ndimage.gaussian_filter(bands(), 3),
    }
    striped = stripedness(painted(bands()), mask)
    readings = {name: stripedness(painted(pattern), mask) for name, pattern in others.items()}
    assert striped > 0.6 and max(readings.values()) < 0.2 * striped, readings
    assert readings["plain"] < 1e-6 and readings["shaded from above"] < 0.1 * striped


def test_background_change_counts_levels_outside_the_animal_only():
    mask, real = ellipse(), painted(bands())
    assert background_change(real, np.where(mask[..., None], 255 - real, real), mask) == 0
    assert background_change(real, np.where(mask[..., None], real, real + 7), mask) == pytest.approx(7)
    left = np.arange(64)[None, :, None] < 32
    assert background_change(real, real + 10 * left, mask) == pytest.approx(5, rel=0.05)


def test_report_of_doing_nothing_and_of_perfect_stripes(drawn, tmp_path):
    real_a, real_b, masks = drawn / "testA", drawn / "testB", drawn / "masks"
    idle = stripe_report(real_a, real_a, real_b, masks)
    assert idle["images"] == 8 and idle["gained"] == 0 and idle["background"] == 0
    assert idle["real_B"] > 4 * idle["real_A"]  # and this at 48 x 48, where stripes are three pixels apart

    for path in sorted(real_a.iterdir())[:4]:  # translations need not be complete
        image, mask = np.asarray(Image.open(path)), np.asarray(Image.open(masks / "testA" / path.name)) > 0
        bars = np.where(np.arange(48) // 2 % 2, 230, 25)[None, :, None].astype(np.uint8)
        Image.fromarray(np.where(mask[..., None], bars, image)).save(tmp_path / path.name)
    striped = stripe_report(real_a, tmp_path, real_b, masks)
    assert striped["images"] == 4 and striped["gained"] > 0.9 and striped["background"] == 0


def test_real_animals_count_as_what_they_are(coats):
    measure = Coats(coats, tuple(COATS))
    same = {coat: measure.report(coat, coat, coats / "test" / coat) for coat in COATS}
    assert {coat: report["background"] for coat, report in same.items()} == dict.fromkeys(COATS, 0)
    assert [report["taken"] for report in same.values()] == pytest.approx([0.85, 1, 1, 1])
    assert measure.report("plain", "ginger", coats / "test" / "plain")["taken"] <= 0.15
