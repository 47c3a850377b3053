"""The attention memory under crops, mirroring, resizing, resuming and several processes."""

from __future__ import annotations

import random
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data.augment import to_input
from data.transforms import Preprocess
from models.attention.fusion import resize_map
from models.attention.memory import AttentionMemory

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


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_same_window_is_bilinear_enlargement(flip):
    attention, stored = memory(), maps(2, 3, 4).double()
    rows, windows = attention.rows(PATHS[1:]), torch.tensor([[0.1, 0.3, 0.7, 0.6, flip]] * 2)
    attention.store(rows, stored, windows)
    torch.testing.assert_close(attention.lookup(rows, (24, 32), windows), resize_map(stored, (24, 32)))
    torch.testing.assert_close(attention.lookup(rows, (3, 4), windows), stored)
    assert attention.lookup(attention.rows(PATHS[:1]), (3, 4)).eq(1).all(), "the other image is untouched"


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
    attention.store(rows[:1], stored[:1])
    assert torch.equal(attention.lookup(rows[:1], (3, 3)), stored[:1])


def test_maps_of_other_sizes_and_with_gradient():
    attention = memory()
    rows = attention.rows(PATHS)
    attention.store(rows[:1], maps(1, 4, 4).double().requires_grad_())
    attention.store(rows[1:], maps(2, 6, 5, seed=1).double())
    assert attention.maps.shape == (3, 1, 4, 4)
    torch.testing.assert_close(attention.maps[1:], resize_map(maps(2, 6, 5, seed=1).double(), (4, 4)))
    assert not attention.lookup(rows, (8, 8)).requires_grad


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


def test_an_empty_memory_is_saved_and_loaded():
    attention = memory()
    attention.store(attention.rows(PATHS), maps(3, 4, 4).double())
    attention.load_state_dict(memory().state_dict())
    assert attention.lookup(attention.rows(PATHS), (4, 4)).eq(1).all()
    attention.store(attention.rows(PATHS), maps(3, 5, 5).double())
    assert attention.maps.shape == (3, 1, 5, 5)


def _one_of_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    attention, stored = memory(), maps(4, 3, 3).double()
    windows = torch.tensor([[0.1, 0.1 * i, 0.5, 0.6, i % 2] for i in range(4)])
    order = [0, 2, 2, 1]
    part = slice(2 * rank, 2 * rank + 2)  # of the global batch
    attention.store(attention.rows([PATHS[i] for i in order[part]]), stored[part], windows[part])
    torch.save(attention.state_dict(), f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_two_processes_hold_what_one_would_hold(tmp_path):
    mp.start_processes(_one_of_two, (str(tmp_path),), nprocs=2, start_method="fork")
    attention = memory()
    windows = torch.tensor([[0.1, 0.1 * i, 0.5, 0.6, i % 2] for i in range(4)])
    attention.store(attention.rows([PATHS[i] for i in (0, 2, 2, 1)]), maps(4, 3, 3).double(), windows)
    expected = attention.state_dict()
    for rank in range(2):
        state = torch.load(tmp_path / f"rank{rank}.pth", weights_only=True)
        assert state["_extra_state"]["paths"] == expected["_extra_state"]["paths"] == PATHS
        assert torch.equal(state["_extra_state"]["maps"], expected["_extra_state"]["maps"])
        assert torch.equal(state["_extra_state"]["windows"], expected["_extra_state"]["windows"])
