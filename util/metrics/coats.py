"""Which coat do translated animals have? For the set of datasets/make_stripes.py --coats.

A coat is five numbers over the animal's mask: stripes, the mean of a * c**2 with the contrast a and the
coherence c of `util.metrics.stripes`; spots, the mean of a * (1 - c**2); and the mean red, green and blue. A
picture counts as the coat whose real test pictures have the nearest mean, each number divided by its standard
deviation within coats. Of the real test pictures at 64 x 64 all ginger, spotted and striped animals count as
what they are, and 17 of 20 plain ones: some horses are nearly ginger.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from util.metrics.stripes import background_change, pattern, pictures, read_mask, read_picture


def describe_coat(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Stripes, spots, red, green and blue of an animal, (5,); image (H, W, 3) in 0..255, mask (H, W) bool."""
    contrast, coherence = pattern(image, mask)
    stripes, spots = contrast * coherence**2, contrast * (1 - coherence**2)
    return np.array([stripes[mask].mean(), spots[mask].mean(), *image[mask].mean(0)])


class Coats:
    """The coats of a drawn set, by its test pictures: `dataroot`/test/COAT and `dataroot`/masks/COAT."""

    def __init__(self, dataroot: str | Path, coats: Sequence[str]) -> None:
        self.root, self.coats = Path(dataroot), tuple(coats)
        real = [
            np.array([describe_coat(picture, mask) for picture, mask in self._masked(coat).values()])
            for coat in self.coats
        ]
        self.spread = np.sqrt(np.mean([numbers.var(0) for numbers in real], 0))  # (5,)
        self.means = np.array([numbers.mean(0) for numbers in real])  # (coats, 5)

    def _masked(self, coat: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The test pictures with a coat, and their masks, by file name."""
        found = {}
        for name, path in pictures(self.root / "test" / coat).items():
            mask = read_mask(self.root / "masks" / coat / name)
            found[name] = read_picture(path, mask), mask
        return found

    def recognise(self, image: np.ndarray, mask: np.ndarray) -> str:
        """The name of the coat inside the mask."""
        distances = (describe_coat(image, mask) - self.means) / self.spread
        return self.coats[np.square(distances).sum(1).argmin()]

    def report(self, source: str, target: str, folder: str | Path) -> dict[str, float]:
        """Judge the translations in `folder` of the test pictures of `source` to `target`, of the same names.

        Returns:
            taken: the share that counts as `target`.
            background: mean change of the background, in levels of 0..255.
        """
        real, taken, background = self._masked(source), [], []
        for name, path in pictures(folder).items():
            picture, mask = real[name]
            fake = read_picture(path, mask)
            taken.append(self.recognise(fake, mask) == target)
            background.append(background_change(picture, fake, mask))
        return {"taken": float(np.mean(taken)), "background": float(np.mean(background))}
