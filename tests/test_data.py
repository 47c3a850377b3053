"""Listing, preprocessing, colours, order, caching, and what makes a sample."""

import os
import pickle
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from data.datasets import AlignedDataset, ImageStore, SampleKey, SingleDataset, UnalignedDataset
from data.loader import Loader
from data.transforms import MODES, Preprocess, adjust_hue, jitter, to_input
from util.errors import UserError
from util.image_files import ImageError, list_images


def draw(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    """Write a picture of noise, a different one for each folder and name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(list(f"{path.parent.name}/{path.name}".encode()))
    Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


@pytest.fixture
def unpaired(tmp_path: Path) -> Path:
    """Five of A, three of B for training; two and one for testing."""
    for folder, count in {"trainA": 5, "trainB": 3, "testA": 2, "testB": 1}.items():
        for number in range(count):
            draw(tmp_path / folder / f"{number}.png")
    return tmp_path


SMALL = Preprocess(load_size=24, crop_size=16, n_epochs=2)
TEST = Preprocess(load_size=16, crop_size=16, training=False)


def test_listing_is_sorted_recursive_and_passes_over_what_is_hidden_or_no_image(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/c/d.tiff", "C.png", ".hidden.png", ".folder/x.png", "x.png/y.png"):
        draw(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["C.png", "a/c/d.tiff", "a/z.JPG", "b.png", "x.png/y.png"]
    assert [path.name for path in list_images(tmp_path, 2)] == ["C.png", "d.tiff"]
    with pytest.raises(UserError, match="'.*nowhere' does not exist"):
        list_images(tmp_path / "nowhere")


# ---- preprocessing ----


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("resize_and_crop", (100, 50), (286, 286)),
        ("crop", (301, 402), (301, 402)),
        ("scale_width", (572, 800), (286 + 2, 400)),  # to a multiple of 4
        ("scale_width", (1024, 512), (288, 256)),  # not lower than crop_size
        ("scale_width_and_crop", (1024, 512), (286, 256)),
        ("scale_shortside_and_crop", (143, 260), (286, 520)),
        ("scale_shortside_and_crop", (500, 300), (500, 300)),  # large ones stay, as in CUT
        ("none", (101, 202), (100, 200)),
    ],
)
def test_images_are_resized_once_bicubic(mode, size, expected):
    """The released code resizes twice in scale_width (docs/options.md)."""
    image = Image.effect_noise(size, 60).convert("RGB")
    resized = Preprocess(mode).resize(image, 286)
    assert resized.size == expected
    assert resized.tobytes() == image.resize(expected, Image.Resampling.BICUBIC).tobytes()


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(MODES), *[st.integers(1, 200)] * 2, st.integers(16, 60), st.sampled_from([16, 20, 32]))
def test_inputs_have_sides_of_multiples_of_4_whatever_the_image(mode, width, height, load, crop):
    preprocess = Preprocess(mode, max(load, crop), crop)
    try:
        image = preprocess.resize(Image.new("RGB", (width, height)), preprocess.load_size)
    except UserError as error:
        assert mode != "resize_and_crop" and f"{width} x {height} pixels" in str(error)
        return
    top, left, _ = preprocess.draw_window(random.Random(0), image.height, image.width)
    high, wide = preprocess.input_size(image.height, image.width)
    assert high % 4 == 0 and wide % 4 == 0 and min(high, wide) >= 16
    assert 0 <= top <= image.height - high and 0 <= left <= image.width - wide


@pytest.mark.parametrize("setting", [{"crop_size": 250}, {"crop_size": 12}, {"load_size": 200}])
def test_impossible_sizes_are_refused(setting):
    with pytest.raises(UserError, match="a multiple of 4, at least 16 and at most --load_size"):
        Preprocess(**setting)


@pytest.mark.parametrize("mode", MODES)
def test_the_aspect_of_an_image_never_changes_in_mid_run_and_testing_keeps_the_scale(mode):
    assert [SMALL.load_size_at(epoch) for epoch in (1, 2, 3, 9)] == [24, 24, 16, 16]
    preprocess, image = Preprocess(mode, 512, 256, n_epochs=2), Image.new("RGB", (1024, 576))
    early, late = (preprocess.resize(image, preprocess.load_size_at(epoch)) for epoch in (2, 3))
    assert early.width / early.height == pytest.approx(late.width / late.height, rel=0.01)
    test = Preprocess(mode, 512, 256, training=False, whole=True)
    image = test.resize(Image.new("RGB", (1024, 577)), 512)
    scale = {"resize_and_crop": (512, 512), "scale_width": (512, 288), "scale_width_and_crop": (512, 288)}
    assert image.size == scale.get(mode, (1024, 576)) == test.input_size(*image.size[::-1])[::-1]
    assert test.draw_window(random.Random(0), *image.size) == (0, 0, False)


def test_windows_are_spread_evenly_over_all_places_and_both_ways():
    generator = random.Random(0)
    seen = Counter(SMALL.draw_window(generator, 18, 17) for _ in range(3000))
    assert len(seen) == 3 * 2 * 2 and min(seen.values()) > 190  # 250 each, expected
    unflipped = Preprocess(load_size=24, crop_size=16, flip=False)
    assert {unflipped.draw_window(generator, 18, 17)[2] for _ in range(50)} == {False}
    assert TEST.draw_window(generator, 24, 20) == (4, 2, False)


@pytest.mark.parametrize("channels", [3, 1])
def test_a_batch_is_mirrored_and_normalised_as_each_image_is(channels):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 12, 16, 3), dtype=torch.uint8, generator=generator)
    mirrored = torch.tensor([False, True, True, False])
    result = to_input(pixels, mirrored, channels)
    for image, flip, found in zip(pixels, mirrored, result, strict=True):
        expected = image.double().flip(1) if flip else image.double()
        if channels == 1:
            expected = (expected * torch.tensor([0.299, 0.587, 0.114]).double()).sum(2, keepdim=True)
        expected = ((expected / 255 - 0.5) / 0.5).permute(2, 0, 1)
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    extremes = to_input(torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 4, 4, 3))
    assert (extremes[0] == -1).all() and (extremes[1] == 1).all()


# ---- other colours, of LSeSim's second views ----


def test_images_have_their_own_changes_in_their_own_order():
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changes = [("contrast", 1.5), ("brightness", 0.5), ("saturation", 1.4), ("hue", -0.2)]
    orders = [[("brightness", 0.5)], changes, changes[::-1]]
    found = jitter(image.expand(3, -1, -1, -1), orders)
    for order, view in zip(orders, found, strict=True):
        expected = image / 2 + 0.5
        for name, amount in order:
            expected = getattr(functional, f"adjust_{name}")(expected, amount)
        torch.testing.assert_close(view, expected * 2 - 1)
    assert not torch.allclose(found[1], found[2], atol=0.01)


def test_hues_are_torchvisions_bit_for_bit():
    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    image[:, :9, :9] = image[:1, :9, :9]  # grey
    image[:, 20:] = (4 * image[:, 20:]).round() / 4  # channels that are equal, 0 or 1
    for turns in (-0.5, -0.3, -0.1, 0.0, 0.2, 0.5):
        assert torch.equal(adjust_hue(image, turns), functional.adjust_hue(image, turns))


# ---- order ----


def batches(
    count: int, batch_size: int, *where: int, epoch: int = 1, first: int = 0, **how
) -> list[list[SampleKey]]:
    """The batches of a shuffled epoch of `count` images; `where`: rank and number of processes."""
    return list(Loader(range(count), "cpu", batch_size, 0, True, *where, **how).keys(epoch, first))


def test_an_epoch_holds_every_image_once_in_an_order_of_its_own():
    first, second = ([key.index for (key,) in batches(10, 1, epoch=epoch)] for epoch in (1, 2))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert first != [key.index for (key,) in Loader(range(10), "cpu", 1, seed=4, shuffle=True).keys(1)]
    assert [key.position for (key,) in batches(10, 1)] == list(range(10))
    assert [key.index for (key,) in Loader(range(4), "cpu", 1).keys(7)] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="3 images, less than one batch of 4"):
        batches(3, 2, 0, 2)


@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_share_the_batches_of_one_process(drop_last):
    whole = batches(22, 6, drop_last=drop_last)
    parts = [batches(22, 2, rank, 3, drop_last=drop_last) for rank in range(3)]
    for number, batch in enumerate(whole):
        assert sum((part[number] for part in parts if number < len(part)), []) == batch
    assert len(whole) == (3 if drop_last else 4) == len(Loader(range(22), "cpu", 6, drop_last=drop_last))


def test_resuming_goes_on_where_it_stopped_also_with_other_processes():
    whole = sum(batches(24, 4, epoch=5), [])
    assert sum(batches(24, 4, epoch=5, first=8), []) == whole[8:]
    parts = [batches(24, 4, rank, 2, epoch=5, first=8) for rank in range(2)]
    assert sum((a + b for a, b in zip(*parts, strict=True)), []) == whole[8:]
    assert batches(24, 4, epoch=5, first=24) == []


# ---- cache ----


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_cache_is_shared_and_keeps_what_fits_at_the_size_of_the_epoch(unpaired):
    store = ImageStore([str(path) for path in list_images(unpaired / "trainA")], SMALL, 3.5 * 3 * 24**2 / 1e9)
    assert store.begin_epoch(1) and not store.begin_epoch(2)
    child = os.fork()
    if not child:
        store.read(1, 1)
        os._exit(0)
    os.waitpid(child, 0)
    assert store.cached == 1
    expected = [store.read(index, 1).copy() for index in range(4)]
    assert store.cached == 3
    assert pickle.loads(pickle.dumps(store)).cached == 0  # not shared with a process that is not forked
    for path in store.paths[:3]:
        Path(path).unlink()
    assert all((store.read(index, 2) == expected[index]).all() for index in range(4))
    with pytest.raises(ImageError):
        store.read(0, 3)  # at another size
    assert store.begin_epoch(3) and store.cached == 0


# ---- samples ----


def views_equal(first, second) -> bool:
    return first.keys() == second.keys() and all(
        (first[domain].pixels == second[domain].pixels).all() and first[domain][1:3] == second[domain][1:3]
        for domain in first
    )


def keys(dataset) -> list[SampleKey]:
    return [SampleKey(1, position, position) for position in range(len(dataset))]


def test_an_unpaired_sample_depends_on_seed_epoch_and_position_alone(unpaired):
    dataset = UnalignedDataset(unpaired, "train", SMALL, seed=1)
    assert len(dataset) == 5 and dataset.sizes == {"A": 5, "B": 3}
    again = pickle.loads(pickle.dumps(UnalignedDataset(unpaired, "train", SMALL, seed=1, cache_gb=0.1)))
    other = UnalignedDataset(unpaired, "train", SMALL, seed=2)
    for key in reversed(keys(dataset)):
        assert views_equal(again[key], dataset[key]) and views_equal(again[key], dataset[key])
    assert not all(views_equal(other[key], dataset[key]) for key in keys(dataset))


def test_unpaired_partners_crops_and_flips_are_drawn_apart(unpaired):
    dataset = UnalignedDataset(unpaired, "train", SMALL)
    views = [dataset[SampleKey(1, position, 4)] for position in range(300)]
    assert {view["A"].path for view in views} == {str(unpaired / "trainA" / "4.png")}
    assert len({(view["A"].part[:2], view["B"].part[:2]) for view in views}) > 200
    for drawn, number, least in (
        ([view["B"].path for view in views], 3, 70),
        ([(view["A"].part[4], view["B"].part[4]) for view in views], 4, 50),
    ):
        assert len(set(drawn)) == number and min(Counter(drawn).values()) > least
    serial = UnalignedDataset(unpaired, "train", SMALL, serial_batches=True)
    assert [serial[key]["B"].path[-5] for key in keys(serial)] == list("01201")


def test_direction_val_folders_limits_and_test(unpaired):
    dataset = UnalignedDataset(unpaired, "test", TEST)
    assert len(dataset) == 2  # of A, each once
    paths = [view.path for view in dataset[SampleKey(1, 1, 1)].values()]
    assert paths == [str(unpaired / "testA/1.png"), str(unpaired / "testB/0.png")]
    back = UnalignedDataset(unpaired, "test", TEST, direction="BtoA")
    assert len(back) == 1 and back[SampleKey(1, 0, 0)]["A"].path == str(unpaired / "testB/0.png")
    assert UnalignedDataset(unpaired, "train", SMALL, max_dataset_size=2).sizes == {"A": 2, "B": 2}
    (unpaired / "testA").rename(unpaired / "valA")
    (unpaired / "testB").rename(unpaired / "elsewhere")
    dataset = UnalignedDataset(unpaired, "test", TEST)
    assert dataset[SampleKey(1, 0, 0)].keys() == {"A"}  # B is not needed to translate
    assert dataset.stores["A"].paths[0] == str(unpaired / "valA/0.png")


def test_a_missing_set_says_how_to_get_one(tmp_path):
    draw(tmp_path / "trainA" / "0.png")
    for kind, root, phase, message in (
        (UnalignedDataset, tmp_path / "no", "train", "(?s)does not exist.*download_.*make_stripes.py"),
        (UnalignedDataset, tmp_path, "test", "no folder testA .*in .* which has 'trainA'"),
        (UnalignedDataset, tmp_path, "train", "trainB' does not exist"),
        (AlignedDataset, tmp_path, "test", "no folder test or val in"),
        (SingleDataset, tmp_path / "trainA", "train", "single has no domain B"),
    ):
        with pytest.raises(UserError, match=message):
            kind(root, phase, SMALL)


def test_pairs_are_cut_alike(tmp_path):
    left, right = (np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8) for seed in (0, 1))
    (tmp_path / "train").mkdir()
    Image.fromarray(np.concatenate([left, right], 1)).save(tmp_path / "train" / "0.png")
    forth = AlignedDataset(tmp_path, "train", SMALL, cache_gb=0.1)
    back = AlignedDataset(tmp_path, "train", SMALL, direction="BtoA")
    for position in range(20):
        key = SampleKey(1, position, 0)
        views = forth[key]
        assert views["A"].part == views["B"].part
        top, column = (round(fraction * 24) for fraction in views["A"].part[:2])
        window = np.s_[top : top + 16, column : column + 16]
        assert (views["A"].pixels == left[window]).all() and (views["B"].pixels == right[window]).all()
        assert (back[key]["A"].pixels == right[window]).all()
    assert forth[SampleKey(9, 0, 0)]["B"].pixels.shape == (16, 16, 3)
    draw(tmp_path / "train" / "1.png", (41, 30))
    with pytest.raises(ImageError, match="1.png.*41 pixels wide"):
        AlignedDataset(tmp_path, "train", SMALL)[SampleKey(1, 0, 1)]
