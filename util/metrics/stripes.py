"""Did the animals get their stripes, and did the background keep still? For sets with masks of the animals.

Stripes are contrast at a certain scale, in one direction at a time. `stripedness` keeps the band of the
luminance that stripes live in, measured against the animal and not against the picture, and counts its
contrast only as far as the structure tensor finds a single direction there. So shading and brightness fall
out as too coarse, and noise, spots and checks as having no direction.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from util.errors import UserError

LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# Standard deviations of Gaussians, in units of the animal's radius: that of the largest disc inside its mask.
FINE, COARSE, PATCH = 0.08, 0.35, 0.35
MARGIN = (
    1 / 32
)  # of the longer side: this close to an animal is neither animal nor background, as edges are soft


def stripedness(image: np.ndarray, mask: np.ndarray) -> float:
    """How striped the coat inside a mask is: 1 for straight bands of black and white, 0 for an even coat.

    `image` is (H, W, 3) in 0..255, `mask` (H, W) bool. With a the local contrast in the band of stripes (peak
    to peak, as a fraction of the way from black to white) and c in 0..1 the coherence of the structure tensor
    there, the result is the mean of a * c**2 over the mask. Of the drawn set at 64 x 64, plain animals read
    0.03 and striped ones, whose bands bend and meet, 0.27. The reading does not depend on the picture's size
    as long as stripes repeat every 4 pixels or more. Raises `ValueError` for an empty mask or a wrong shape.
    """
    mask = _checked(mask, image)
    radius = ndimage.distance_transform_edt(np.pad(mask, 1)).max()
    inside = mask.astype(np.float64)
    light = image.astype(np.float64) @ LUMINANCE / 255  # (H, W)

    def smooth(values: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian mean over the mask's pixels only: what lies outside must not leak in."""
        weight = ndimage.gaussian_filter(inside, sigma * radius, mode="constant")
        return ndimage.gaussian_filter(values * inside, sigma * radius, mode="constant") / np.maximum(
            weight, 1e-6
        )

    band = smooth(light, FINE) - smooth(light, COARSE)
    dy, dx = np.gradient(band)
    xx, yy, xy = smooth(dx * dx, PATCH), smooth(dy * dy, PATCH), smooth(dx * dy, PATCH)
    coherence = np.hypot(xx - yy, 2 * xy) / (xx + yy + 1e-12)
    contrast = 2 * np.sqrt(2 * smooth(band * band, PATCH))  # of the sine wave that has this energy
    return float((contrast * coherence**2)[mask].mean())


def background_change(real: np.ndarray, fake: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute change of the background from `real` to `fake`, in levels of 0..255.

    Both are (H, W, 3) in 0..255. Background is what lies outside `mask`, (H, W) bool, grown by 1/32 of
    the picture. Raises `ValueError` where shapes differ, the mask is empty or no background is left.
    """
    mask = _checked(mask, real)
    if fake.shape != real.shape:
        raise ValueError(
            f"the real picture is {real.shape}, the fake one {fake.shape}: they must have one shape"
        )
    background = ndimage.distance_transform_edt(~mask) > MARGIN * max(mask.shape)
    if not background.any():
        raise ValueError("the mask leaves no background to compare")
    return float(np.abs(fake.astype(np.float64) - real.astype(np.float64))[background].mean())


def stripe_report(
    real_a: str | Path, fake_b: str | Path, real_b: str | Path, masks: str | Path
) -> dict[str, float]:
    """Measure a folder of translated pictures against the set they came from.

    `real_a` and `real_b` are the set's test folders, `masks` holds the folders `testA` and `testB`; a
    translation in `fake_b` bears the name of its real A, and any A without one is left out. All are PNG.
    The dict returned holds

    - `images`: how many translations were found
    - `real_A`, `fake_B`, `real_B`: mean `stripedness`; of A, over the translated pictures only
    - `gained`: where fake B stands between real A (0) and real B (1)
    - `background`: mean `background_change` from real A to fake B, in levels of 0..255

    Raises `UserError` for an empty folder, a missing partner or mask, and a picture not of its mask's size.
    """
    sources, targets = _pictures(real_a), _pictures(real_b)
    stripes: dict[str, list[float]] = {"real_A": [], "fake_B": [], "real_B": []}
    changes = []
    for name, path in _pictures(fake_b).items():
        if name not in sources:
            raise UserError(
                f"{path}: no picture of that name in {real_a}: give the folder it was translated from"
            )
        mask = _mask(Path(masks) / "testA" / name)
        real, fake = _picture(sources[name], mask), _picture(path, mask)
        stripes["real_A"].append(stripedness(real, mask))
        stripes["fake_B"].append(stripedness(fake, mask))
        changes.append(background_change(real, fake, mask))
    for name, path in targets.items():
        mask = _mask(Path(masks) / "testB" / name)
        stripes["real_B"].append(stripedness(_picture(path, mask), mask))
    means = {name: float(np.mean(values)) for name, values in stripes.items()}
    gained = (means["fake_B"] - means["real_A"]) / max(means["real_B"] - means["real_A"], 1e-6)
    return {"images": len(changes), **means, "gained": gained, "background": float(np.mean(changes))}


def _checked(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask, bool)
    if image.shape != (*mask.shape, 3) or not mask.any():
        found = f"picture {image.shape}, mask {mask.shape} with {mask.sum()} pixels set"
        raise ValueError(f"{found}: expected (H, W, 3) and (H, W) with some set")
    return mask


def _pictures(folder: str | Path) -> dict[str, Path]:
    """The PNG files of a folder by file name, in order."""
    found = {path.name: path for path in sorted(Path(folder).glob("*.png"))}
    if not found:
        raise UserError(f"{folder}: no PNG pictures there: give the folder that holds them")
    return found


def _mask(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: no such mask: datasets/make_stripes.py draws sets that have them")
    with Image.open(path) as image:
        return np.asarray(image.convert("L")) > 127  # (H, W)


def _picture(path: Path, mask: np.ndarray) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))  # (H, W, 3)
    if pixels.shape[:2] != mask.shape:
        sizes = f"{pixels.shape[1]} x {pixels.shape[0]}, its mask {mask.shape[1]} x {mask.shape[0]}"
        raise UserError(f"{path} is {sizes}: translate at the size of the set, without scaling or cropping")
    return pixels
