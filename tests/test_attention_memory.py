"""The attention memory under crops, mirroring, resizing, resuming and several processes."""

from __future__ import annotations

import random

import pytest
import torch

from data.transforms import Preprocess, to_input
from models.attention_memory import AttentionMemory

PATHS = ["set/trainA/0.png", "set/trainA/1.png", "set/trainA/2.png"]


def fractions(window, crop, image):
    """A window (top, left, flip) of the size `crop` in pixels, as the memory wants it."""
    (top, left, flip), (height, width) = window, image
    return [top / height, left / width, crop[0] / height, crop[1] / width, float(flip)]


def maps(count, *size, seed=0):
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(seed))


def memory(*paths, **settings):
    attention = AttentionMemory(**settings).double()
    attention.add(paths or PATHS)
    return attention


def test_maps_follow_crops_and_mirroring():
    """Bilinear resampling keeps planes: a plane stored from one random crop and looked up for another must be
    what the other crop cuts out of the image, wherever the two overlap.
    """
    preprocess, generator = Preprocess("resize_and_crop", load_size=60, crop_size=40), random.Random(3)
    y, x = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    image = (x + 2 * y)[None, ..., None].expand(1, 60, 60, 3).to(torch.uint8)  # below 256

    def sample():
        window = preprocess.draw_window(generator, 60, 60)
        crop = image[:, window[0] : window[0] + 40, window[1] : window[1] + 40]
        plane = to_input(crop, torch.tensor([window[2]]))[:, :1].double()
        return window, torch.tensor([fractions(window, (40, 40), (60, 60))], dtype=torch.float64), plane

    flips = set()
    for _ in range(12):
        attention = memory()
        rows = attention.rows(PATHS[:1])
        (top, left, flip), windows, plane = sample()
        attention.store(rows, plane, windows)  # here a map has one number per pixel
        (new_top, new_left, new_flip), windows, expected = sample()
        found = attention.lookup(rows, (40, 40), windows)[0, 0]
        flips.add((flip, new_flip))
        for row in range(40):
            for column in range(40):
                at_y = new_top + row
                at_x = new_left + (39 - column if new_flip else column)
                inside = top <= at_y < top + 40 and left <= at_x < left + 40
                target = expected[0, 0, row, column].item() if inside else 1.0
                assert found[row, column].item() == pytest.approx(target, abs=1e-6)
    assert len(flips) == 4, "each combination of mirroring was seen"


def test_a_small_map_between_windows():
    """The left half of the map of a whole image, mirrored: half-pixel positions by hand."""
    attention = memory()
    rows = attention.rows(PATHS[:1])
    attention.store(rows, torch.tensor([[[[0.0, 0.2, 0.6, 1.0]]]]).double())
    left_half = torch.tensor([[0.0, 0.0, 1.0, 0.5, 1.0]])
    assert attention.lookup(rows, (1, 2), left_half).flatten().tolist() == pytest.approx([0.2, 0.0])
    twice = attention.lookup(rows, (1, 4), left_half).flatten().tolist()
    assert twice == pytest.approx([0.2 + 0.4 / 4, 0.15, 0.05, 0.0])


def test_the_last_map_of_an_image_stays():
    attention, stored = memory(), maps(4, 3, 3).double()
    rows = attention.rows([PATHS[i] for i in (0, 1, 0, 0)])
    attention.store(rows, stored)
    assert torch.equal(attention.lookup(rows, (3, 3)), stored[[3, 1, 3, 3]])


def test_saved_by_path_and_exact(tmp_path):
    """Maps are exact after loading, also where the data set grew, shrank or has another order."""
    attention = memory()
    windows = torch.tensor([[0.1, 0.2, 0.5, 0.6, 1.0], [0.0, 0.3, 0.9, 0.7, 0.0]])
    attention.store(attention.rows(PATHS[1:]), maps(2, 3, 4).double(), windows)
    torch.save(attention.state_dict(), tmp_path / "memory.pth")
    state = torch.load(tmp_path / "memory.pth", weights_only=True)
    assert state["_extra_state"]["paths"] == PATHS[1:], "images without a map are not saved"

    changed = memory("set/trainA/new.png", PATHS[2], PATHS[0])
    changed.store(changed.rows(["set/trainA/new.png"]), maps(1, 2, 2).double())
    changed.load_state_dict(state)
    crops = torch.tensor([[0.2, 0.1, 0.5, 0.5, 0.0]] * 3)
    for paths in (PATHS, list(reversed(PATHS))):
        expected = attention.lookup(attention.rows(paths), (9, 9), crops)
        assert torch.equal(changed.lookup(changed.rows(paths), (9, 9), crops), expected)
    new = changed.lookup(changed.rows(["set/trainA/new.png"]), (9, 9))
    assert new.eq(1).all(), "what a load does not bring is as at first"
    assert changed.get_extra_state()["paths"] == [PATHS[2], PATHS[1]], "the image that is gone keeps its map"
