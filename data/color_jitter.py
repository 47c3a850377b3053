"""Random changes of colour for a second view of an image: brightness, contrast, saturation, hue (LSeSim).

The view has the crop and mirroring of the plain one. Its changes are drawn on the host (`draw_jitter`) and
applied to a whole batch on the device (`jitter`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

BRIGHTNESS = CONTRAST = SATURATION = 0.5
HUE = 0.3

ADJUSTMENTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
    "hue": functional.adjust_hue,
}


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
    """Apply `changes[i]` to image i of images (B, C, H, W) in [-1, 1], C 3 or 1; same shape, range and type.

    The arithmetic is torchvision's for float images (the released code rounds to bytes after each change).
    With one channel, saturation and hue change nothing.
    """
    if len(images) != len(changes):
        raise ValueError(f"jitter: {len(images)} images, but {len(changes)} changes")
    views = []
    for image, change in zip(images / 2 + 0.5, changes, strict=True):
        for name in change.order:
            image = ADJUSTMENTS[name](image, getattr(change, name))
        views.append(image)
    return torch.stack(views) * 2 - 1
