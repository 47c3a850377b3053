"""What the device computes of a whole batch: mirroring and normalisation, and changes of colour for LSeSim.

LSeSim compares an image with a second view of it, which has the same crop and mirroring and other colours:
`draw_jitter` draws the changes on the host, `jitter` applies them on the device.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601, as Pillow's grey

BRIGHTNESS = CONTRAST = SATURATION = 0.5
HUE = 0.3


def adjust_hue(image: Tensor, turns: float) -> Tensor:
    """Turn the hues of an image (3, H, W) in [0, 1] by `turns`, in [-0.5, 0.5].

    The arithmetic is that of torchvision's `adjust_hue`, which copies a table from the host at each call and
    so makes a GPU wait.
    """
    red, green, _ = image
    least, value = image.aminmax(dim=0)
    spread = value - least
    grey = spread == 0
    saturation = spread / torch.where(grey, 1.0, value)
    below_r, below_g, below_b = (value - image) / torch.where(grey, 1.0, spread)
    blue_most, green_most = below_g + 4.0 - below_r, below_r + 2.0 - below_b
    hue = torch.where(value == green, green_most, blue_most)
    hue = torch.where(value == red, below_b - below_g, hue)
    hue = ((hue * (1.0 / 6.0) + 1.0).fmod(1.0) + turns).remainder(1.0)

    sector = (6 * hue).floor()
    part = saturation * (6 * hue - sector)
    rest = 1.0 - saturation
    low = (rest * value).clamp(0, 1)
    falling, rising = ((1.0 - part) * value).clamp(0, 1), ((part + rest) * value).clamp(0, 1)
    of_sectors = (  # of red, green and blue, in each sixth of the circle of hues
        (value, falling, low, low, rising, value),
        (rising, value, value, falling, low, low),
        (low, low, rising, value, value, falling),
    )
    number = sector.long().remainder(6)[None]
    return torch.cat([torch.stack(planes).gather(0, number) for planes in of_sectors])


ADJUSTMENTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
    "hue": adjust_hue,
}


def to_input(pixels: Tensor, mirrored: Tensor | None = None, channels: int = 3) -> Tensor:
    """Pixels (B, H, W, 3) uint8 as the networks take them, (B, channels, H, W) float32 in [-1, 1].

    mirrored: (B,) bool, which images to mirror left to right. channels: 3, or 1 for luminance.
    """
    if mirrored is not None:
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
    images = pixels.permute(0, 3, 1, 2).float().contiguous()  # (B, 3, H, W)
    if channels == 1:
        red, green, blue = images.split(1, 1)
        images = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue  # (B, 1, H, W)
    return images.mul_(1 / 127.5).sub_(1).clamp_(-1, 1)


class Jitter(NamedTuple):
    """The changes of one image. A factor of 1 and a hue of 0 (turns, in [-0.5, 0.5]) change nothing."""

    order: tuple[str, ...]  # names of `ADJUSTMENTS`, in the order in which they are applied
    brightness: float
    contrast: float
    saturation: float
    hue: float


def draw_jitter(generator: random.Random) -> Jitter:
    """Factors uniform within 1 -+ 0.5, hue within -+ 0.3 turns, in random order (as released)."""
    factors = [generator.uniform(1 - reach, 1 + reach) for reach in (BRIGHTNESS, CONTRAST, SATURATION)]
    hue = generator.uniform(-HUE, HUE)
    order = list(ADJUSTMENTS)
    generator.shuffle(order)
    return Jitter(tuple(order), *factors, hue)


def jitter(images: Tensor, changes: Sequence[Jitter]) -> Tensor:
    """Apply `changes[i]` to image i of images (B, 3, H, W) in [-1, 1]; same shape, range and type.

    The arithmetic is torchvision's for float images (the released code rounds to bytes after each change).
    """
    views = []
    for image, change in zip(images / 2 + 0.5, changes, strict=True):
        for name in change.order:
            image = ADJUSTMENTS[name](image, getattr(change, name))
        views.append(image)
    return torch.stack(views) * 2 - 1
