"""Colour jitter of LSeSim's second views: draws that can be repeated, arithmetic by the textbook."""

from __future__ import annotations

import colorsys
import random

import pytest
import torch
from torchvision.transforms.v2 import functional

from data.augment import ADJUSTMENTS, Jitter, adjust_hue, draw_jitter, jitter

ORDER = tuple(ADJUSTMENTS)
SAME = Jitter(ORDER, 1.0, 1.0, 1.0, 0.0)


@pytest.fixture
def images():
    return torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_draws_repeat_from_the_generators_state_and_stay_in_range():
    generator = random.Random("sample 0 1 5")
    state = generator.getstate()
    drawn = [draw_jitter(generator) for _ in range(300)]
    generator.setstate(state)
    assert [draw_jitter(generator) for _ in range(300)] == drawn
    for reach, middle, name in [(0.5, 1, name) for name in ORDER[:3]] + [(0.3, 0, "hue")]:
        values = [getattr(change, name) - middle for change in drawn]
        assert -reach <= min(values) < -0.9 * reach and 0.9 * reach < max(values) <= reach
    assert len({change.order for change in drawn}) == 24  # all orders come up


def grey(pixel):
    r, g, b = pixel
    return 0.2989 * r + 0.587 * g + 0.114 * b


def by_pixel(image, name, amount):
    """One change of image (3, H, W) in [0, 1] by loops over pixels."""
    pixels = [tuple(pixel) for pixel in image.flatten(1).T.tolist()]
    mean = sum(map(grey, pixels)) / len(pixels)
    changed = []
    for pixel in pixels:
        if name == "hue":
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            changed.append(colorsys.hsv_to_rgb((h + amount) % 1, s, v))
        else:
            towards = {"brightness": 0.0, "contrast": mean, "saturation": grey(pixel)}[name]
            changed.append([min(max(amount * x + (1 - amount) * towards, 0), 1) for x in pixel])
    return torch.tensor(changed).T.reshape(image.shape)


def test_images_have_their_own_changes_in_their_own_order(images):
    dark = SAME._replace(brightness=0.5)
    contrast_first = Jitter(("contrast", "brightness", "saturation", "hue"), 1.5, 0.5, 1.4, -0.2)
    changes = [dark, contrast_first, contrast_first._replace(order=ORDER)]
    batch = jitter(images[[0, 1, 1]], changes)
    apart = [jitter(images[[i]], [change])[0] for i, change in zip((0, 1, 1), changes, strict=True)]
    torch.testing.assert_close(batch, torch.stack(apart))
    assert not torch.allclose(batch[1], batch[2], atol=0.01)
    for change, found in zip(changes[1:], batch[1:], strict=True):
        expected = images[1] / 2 + 0.5
        for name in change.order:
            expected = by_pixel(expected, name, getattr(change, name))
        torch.testing.assert_close(found, expected * 2 - 1, rtol=0, atol=1e-4)


def test_hues_are_torchvisions_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 40, 50, generator=generator)
    image[:, :9, :9] = image[:1, :9, :9]  # grey
    image[:, 20:] = (4 * image[:, 20:]).round() / 4  # channels that are equal, 0 or 1
    for turns in (-0.5, -0.3, -0.1, 0.0, 0.2, 0.5):
        assert torch.equal(adjust_hue(image, turns), functional.adjust_hue(image, turns))
