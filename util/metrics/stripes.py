"""How striped are the translated animals, and how much did the background change? For sets with masks.

Stripes are contrast at a certain scale, in a single direction at each place. `stripedness` takes the band of
the luminance that stripes occupy, in units of the animal's size, and weights its contrast by how far the
structure tensor finds a single direction there. Shading and brightness are too coarse to count; noise, spots
and checks have no single direction.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from util.errors import UserError
from util.image_files import list_images, open_rgb

LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# Standard deviations of Gaussians, in units of the animal's radius: that of the largest disc inside its mask.
FINE, COARSE, PATCH = 0.08, 0.35, 0.35
# Of the longer side: pixels this close to an animal count neither as animal nor as background, as edges are
# soft.
MARGIN = 1 / 32


def stripedness(image: np.ndarray, mask: np.ndarray) -> float:
    """How striped the coat inside a mask is: 1 for straight bands of black and white, 0 for an even coat.

    With a the local contrast in the band of stripes (peak to peak, 1 from black to white) and c in [0, 1] the
    coherence of the structure tensor, the result is the mean of a * c**2 over the mask. In the drawn set at
    64 x 64, plain animals score 0.03 and striped ones, whose bands bend and meet, 0.27. The score does not
    depend on the picture's size as long as stripes repeat every 4 pixels or more.

    Args:
        image: (H, W, 3) in 0..255.
        mask: (H, W) bool, not empty.
    """
    contrast, coherence = pattern(image, mask)
    return float((contrast * coherence**2)[mask].mean())


def pattern(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The contrast a and the coherence c of `stripedness` at each pixel, both (H, W)."""
    radius = ndimage.distance_transform_edt(np.pad(mask, 1)).max()
    inside = mask.astype(np.float64)
    light = image.astype(np.float64) @ LUMINANCE / 255  # (H, W)

    def smooth(values: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian mean over the mask's pixels only, so that nothing leaks in from outside."""
        weight = ndimage.gaussian_filter(inside, sigma * radius, mode="constant")
        total = ndimage.gaussian_filter(values * inside, sigma * radius, mode="constant")
        return total / np.maximum(weight, 1e-6)

    band = smooth(light, FINE) - smooth(light, COARSE)
    dy, dx = np.gradient(band)
    xx, yy, xy = smooth(dx * dx, PATCH), smooth(dy * dy, PATCH), smooth(dx * dy, PATCH)
    coherence = np.hypot(xx - yy, 2 * xy) / (xx + yy + 1e-12)
    contrast = 2 * np.sqrt(2 * smooth(band * band, PATCH))  # of the sine wave with this energy
    return contrast, coherence


def background_change(real: np.ndarray, fake: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute change of the background from `real` to `fake`, in levels of 0..255.

    Both are (H, W, 3) in 0..255. The background lies outside `mask`, (H, W) bool, grown by 1/32 of the
    picture.
    """
    background = ndimage.distance_transform_edt(~mask) > MARGIN * max(mask.shape)
    return float(np.abs(fake.astype(np.float64) - real.astype(np.float64))[background].mean())


def stripe_report(
    real_a: str | Path, fake_b: str | Path, real_b: str | Path, masks: str | Path
) -> dict[str, float]:
    """Measure a folder of translated pictures against the set that they come from.

    Translations are named as their sources, and sources without one are left out; `masks` holds the folders
    `testA` and `testB`. Raises `UserError` for a missing source or mask, or for a picture of another size.

    Returns:
        images: number of translations.
        real_A, fake_B, real_B: mean `stripedness`; of A, over the translated pictures only.
        gained: where fake B stands between real A (0) and real B (1).
        background: mean `background_change` from real A to fake B, in levels of 0..255.
    """
    sources = pictures(real_a)
    stripes: dict[str, list[float]] = {"real_A": [], "fake_B": [], "real_B": []}
    changes = []
    for name, path in pictures(fake_b).items():
        if name not in sources:
            raise UserError(f"{path}: no picture of that name in {real_a}: give the folder of its sources")
        mask = read_mask(Path(masks) / "testA" / name)
        real, fake = read_picture(sources[name], mask), read_picture(path, mask)
        stripes["real_A"].append(stripedness(real, mask))
        stripes["fake_B"].append(stripedness(fake, mask))
        changes.append(background_change(real, fake, mask))
    for name, path in pictures(real_b).items():
        mask = read_mask(Path(masks) / "testB" / name)
        stripes["real_B"].append(stripedness(read_picture(path, mask), mask))
    means = {name: float(np.mean(values)) for name, values in stripes.items()}
    gained = (means["fake_B"] - means["real_A"]) / max(means["real_B"] - means["real_A"], 1e-6)
    return {"images": len(changes), **means, "gained": gained, "background": float(np.mean(changes))}


def pictures(folder: str | Path) -> dict[str, Path]:
    """The images of a folder by file name, in order."""
    return {path.name: path for path in list_images(folder)}


def read_mask(path: Path) -> np.ndarray:
    return np.asarray(open_rgb(path).convert("L")) > 127  # (H, W)


def read_picture(path: Path, mask: np.ndarray) -> np.ndarray:
    pixels = np.asarray(open_rgb(path))  # (H, W, 3)
    if pixels.shape[:2] != mask.shape:
        sizes = f"{pixels.shape[1]} x {pixels.shape[0]}, its mask {mask.shape[1]} x {mask.shape[0]}"
        raise UserError(f"{path} is {sizes}: translate at the size of the set, without scaling or cropping")
    return pixels
