"""Where attention lies, class by class (ASGIT's supplement, attention intensity).

A pixel is crucial if its attention exceeds 0.5. An image is aware of a class it shows if at least half of the
class's pixels are crucial. Legend: attention (H, W) in [0, 1], regions (H, W) bool, one for each class of an
image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy import ndimage

Regions = Mapping[str, np.ndarray]


def is_aware(attention: np.ndarray, region: np.ndarray) -> bool:
    """Whether at least half of a region's pixels have attention above 0.5."""
    return float((attention[region] > 0.5).mean()) >= 0.5


def attention_share(attention: np.ndarray, region: np.ndarray) -> float:
    """The part of an image's attention that lies on a region, in [0, 1]; 0 where there is no attention."""
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

    An instance is a connected region, so instances that touch, at a corner too, count as one.
    """
    counts: dict[str, list[int]] = {}
    for regions in images:
        for name, region in regions.items():
            counts.setdefault(name, []).append(ndimage.label(region, np.ones((3, 3)))[1])
    return {
        name: {"share": float(np.mean(np.array(found) > 0)), "instances": float(np.mean(found))}
        for name, found in counts.items()
    }
