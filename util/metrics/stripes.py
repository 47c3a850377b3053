"""Measures of the drawn sets, whose animals have masks: stripes, coats, and the change of the background.

Images are (H, W, 3) in 0..255, masks (H, W) bool, not empty.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from util.errors import UserError
from util.image_files import list_images, open_rgb

# Standard deviations of Gaussians, in units of the animal's radius: that of the largest disc inside its mask.
FINE, COARSE, PATCH = 0.08, 0.35, 0.35
# Of the longer side: pixels this close to an animal, whose edges are soft, are neither animal nor background.
MARGIN = 1 / 32


def stripedness(image: np.ndarray, mask: np.ndarray) -> float:
    """How striped the coat inside a mask is: 1 for straight bands of black and white, 0 for an even coat.

    The mean of a * c**2 over the mask, with a and c of `pattern`. Shading and brightness are too coarse to
    count; noise, spots and checks have no single direction. The picture's size has no effect as long as
    stripes repeat every 4 pixels or more.
    """
    contrast, coherence = pattern(image, mask)
    return float((contrast * coherence**2)[mask].mean())


def pattern(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pixels (H, W) the contrast a, peak to peak, in the band of stripes, and the coherence c, to 1."""
    radius = ndimage.distance_transform_edt(np.pad(mask, 1)).max()
    inside = mask.astype(np.float64)
    light = image.astype(np.float64) @ (0.299, 0.587, 0.114) / 255  # (H, W); ITU-R BT.601

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
    """Mean absolute change outside the mask, grown by 1/32 of the picture, in levels of 0..255."""
    background = ndimage.distance_transform_edt(~mask) > MARGIN * max(mask.shape)
    return float(np.abs(fake.astype(np.float64) - real.astype(np.float64))[background].mean())


def stripe_report(
    real_a: str | Path, fake_b: str | Path, real_b: str | Path, masks: str | Path
) -> dict[str, float]:
    """Means over translations by name, and `gained`: where they stand between real A (0) and real B (1)."""
    sources, targets = (
        _masked(folder, Path(masks, of)) for folder, of in ((real_a, "testA"), (real_b, "testB"))
    )
    rows = [
        (stripedness(real, mask), stripedness(fake, mask), background_change(real, fake, mask))
        for real, fake, mask in _translated(sources, fake_b)
    ]
    real, fake, background = (float(np.mean(column)) for column in zip(*rows, strict=True))
    striped = float(np.mean([stripedness(*found) for found in targets.values()]))
    gained = (fake - real) / max(striped - real, 1e-6)
    means = {"real_A": real, "fake_B": fake, "real_B": striped}
    return {"images": len(rows), **means, "gained": gained, "background": background}


class Coats:
    """The coats of a drawn set, by its test pictures: `dataroot`/test/COAT and `dataroot`/masks/COAT.

    A coat is five numbers over the mask: stripes, the mean of a * c**2 of `pattern`; spots, that of a * (1 -
    c**2); and the mean red, green and blue. A picture counts as the coat whose real test pictures have the
    nearest mean, each number divided by its deviation within coats.
    """

    def __init__(self, dataroot: str | Path, coats: Sequence[str]) -> None:
        self.coats = tuple(coats)
        self.real = {
            coat: _masked(Path(dataroot, "test", coat), Path(dataroot, "masks", coat)) for coat in coats
        }
        numbers = [np.array([_describe(*found) for found in of.values()]) for of in self.real.values()]
        self.spread = np.sqrt(np.mean([of_coat.var(0) for of_coat in numbers], 0))  # (5,)
        self.means = np.array([of_coat.mean(0) for of_coat in numbers])  # (coats, 5)

    def report(self, source: str, target: str, folder: str | Path) -> dict[str, float]:
        """Of translations: `taken`, the share that counts as `target`; `background`, its mean change."""
        rows = []
        for real, fake, mask in _translated(self.real[source], folder):
            distances = (_describe(fake, mask) - self.means) / self.spread
            nearest = self.coats[np.square(distances).sum(1).argmin()]
            rows.append((nearest == target, background_change(real, fake, mask)))
        taken, background = np.mean(rows, axis=0).tolist()
        return {"taken": taken, "background": background}


def _describe(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Stripes, spots, red, green and blue of an animal, (5,)."""
    contrast, coherence = pattern(image, mask)
    stripes, spots = contrast * coherence**2, contrast * (1 - coherence**2)
    return np.array([stripes[mask].mean(), spots[mask].mean(), *image[mask].mean(0)])


def _masked(folder: str | Path, masks: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The pictures of a folder and their masks, by file name. UserError for a missing mask."""
    found = {}
    for path in list_images(folder):
        mask = np.asarray(open_rgb(masks / path.name).convert("L")) > 127  # (H, W)
        found[path.name] = read_picture(path, mask), mask
    return found


def _translated(
    sources: Mapping[str, tuple[np.ndarray, np.ndarray]], folder: str | Path
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Source, translation and mask of each picture in a folder of translations."""
    for path in list_images(folder):
        if path.name not in sources:
            raise UserError(f"{path}: there is no picture of that name among its sources, nor a mask")
        real, mask = sources[path.name]
        yield real, read_picture(path, mask), mask


def read_picture(path: Path, mask: np.ndarray) -> np.ndarray:
    pixels = np.asarray(open_rgb(path))  # (H, W, 3)
    if pixels.shape[:2] != mask.shape:
        sizes = f"{pixels.shape[1]} x {pixels.shape[0]}, its mask {mask.shape[1]} x {mask.shape[0]}"
        raise UserError(f"{path} is {sizes}: translate at the size of the set, without scaling or cropping")
    return pixels
