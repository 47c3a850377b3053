"""Where attention lies, class by class (ASGIT's supplement, attention intensity).

A pixel is crucial if its attention exceeds 0.5. An image is aware of a class it shows if at least half of the
class's pixels are crucial. Legend: attention (H, W) in [0, 1], regions (H, W) bool, one for each class of an
image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy import ndimage

CRUCIAL, AWARE = 0.5, 0.5
NEIGHBOURS = np.ones((3, 3), bool)  # pixels that touch at a corner belong together

Regions = Mapping[str, np.ndarray]


def is_aware(attention: np.ndarray, region: np.ndarray) -> bool:
    """Whether at least half of a region's pixels have attention above 0.5. ValueError for an empty region."""
    _check(attention, region)
    return float((attention[region] > CRUCIAL).mean()) >= AWARE


def attention_share(attention: np.ndarray, region: np.ndarray) -> float:
    """The part of an image's attention that lies on a region, in [0, 1]; 0 where there is no attention."""
    _check(attention, region)
    total = float(attention.sum())
    return float(attention[region].sum()) / total if total > 0 else 0.0


def intensity(images: Iterable[tuple[np.ndarray, Regions]]) -> dict[str, dict[str, float]]:
    """By class, over the images that show it: `images`, their number; `aware`, the share that is aware of it;
    `attention`, the mean share of attention on it; `area`, its mean share of pixels (even attention's share).
    """
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for attention, regions in images:
        for name, region in regions.items():
            if region.any():
                seen = (is_aware(attention, region), attention_share(attention, region), region.mean())
                rows.setdefault(name, []).append(seen)
    names = ("aware", "attention", "area")
    return {
        name: {"images": len(seen), **dict(zip(names, map(float, np.mean(seen, axis=0)), strict=True))}
        for name, seen in rows.items()
    }


def class_statistics(images: Iterable[Regions]) -> dict[str, dict[str, float]]:
    """By class: `share` of images that show it, and `instances`, the mean number per image of all.

    An instance is a connected region, so instances that touch count as one.
    """
    images, counts = list(images), {}
    for regions in images:
        for name, region in regions.items():
            counts.setdefault(name, []).append(ndimage.label(region, NEIGHBOURS)[1])
    return {
        name: {
            "share": sum(count > 0 for count in found) / len(images),
            "instances": sum(found) / len(images),
        }
        for name, found in counts.items()
    }


def _check(attention: np.ndarray, region: np.ndarray) -> None:
    if attention.shape != region.shape or not region.any():
        raise ValueError(f"attention {attention.shape}, region {region.shape} with {region.sum()} pixels")
