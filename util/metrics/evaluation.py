"""Numbers of a set of translations against a set of real images, by the chosen metrics and networks.

An `Evaluator` holds the real side, which is processed once for any number of sets compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np

from util.errors import UserError
from util.metrics.features import FeatureNetwork, extract
from util.metrics.frechet import frechet_distance
from util.metrics.image_set import ImageSet
from util.metrics.kernel import kernel_inception_distance
from util.metrics.sliced_wasserstein import level_sizes, pyramid_distance, pyramid_patches


@dataclass
class Evaluation:
    """The result of one comparison: a number per name, and under the same names what it was computed from."""

    numbers: dict[str, float] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, number: float, **details: Any) -> None:
        self.numbers[name] = float(number)
        self.details[name] = details


def higher_is_better(name: str) -> bool:
    """Whether a larger number of this name is better; of distances the smaller is."""
    return name.startswith("class-") or name == "stripes-gained"


class Evaluator:
    """Compares image sets with one real set.

    Args:
        frechet, kernel: the networks for Frechet and kernel distances.
        classes: pairs of a classifier and a class index, for the percentage of images assigned to it.
        swd_size: side in pixels at which patches are compared; None: no SWD.
        kid_subsets, kid_subset_size: see `kernel_inception_distance`.
        seed: of every random draw.
    """

    def __init__(
        self,
        real: ImageSet,
        *,
        frechet: Sequence[FeatureNetwork] = (),
        kernel: Sequence[FeatureNetwork] = (),
        classes: Sequence[tuple[FeatureNetwork, int]] = (),
        swd_size: int | None = 256,
        kid_subsets: int = 100,
        kid_subset_size: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        if swd_size is not None:
            level_sizes(swd_size)  # refuse an impossible size before the long work
        self.real, self.frechet, self.kernel, self.classes = real, frechet, kernel, classes
        self.swd_size, self.kid_subsets, self.kid_subset_size = swd_size, kid_subsets, kid_subset_size
        self.batch_size, self.seed = batch_size, seed
        self._features_of_real = cache(lambda network: self._features(network, real))

    def evaluate(self, fake: ImageSet) -> Evaluation:
        """Every metric of `fake` against the real set; the batch size changes only rounding."""
        result = Evaluation()
        features_of_fake = cache(lambda network: self._features(network, fake))

        def pair(network: FeatureNetwork) -> tuple[np.ndarray, np.ndarray]:
            return features_of_fake(network)[0], self._features_of_real(network)[0]

        for network in self.frechet:
            result.add(network.frechet_label, frechet_distance(*pair(network)), network=network.name)
        for network in self.kernel:
            options = (self.kid_subsets, self.kid_subset_size, self.seed)
            distance = kernel_inception_distance(*pair(network), *options)
            subsets = {"subsets": self.kid_subsets, "subset_size": distance.subset_size}
            result.add(network.kernel_label, distance.mean, network=network.name, std=distance.std, **subsets)
        for network, index in self.classes:
            sides = (features_of_fake(network), self._features_of_real(network))
            fake_share, real_share = (100 * float((found == index).mean()) for _, found in sides)
            name = f"class-{index}-{network.name}"
            result.add(name, fake_share, network=network.name, unit="%", real=real_share)
        if self.swd_size is not None:
            self._add_swd(result, fake)
        return result

    def _add_swd(self, result: Evaluation, fake: ImageSet) -> None:
        """SWD of equally many images per side: of the larger set a random part, drawn by the seed."""
        images = min(len(fake), len(self.real))
        sides = []
        for patches in (self._patches(fake), self._patches_of_real):
            chosen = np.random.default_rng(self.seed).choice(len(patches[0]), images, replace=False)
            sides.append([level[np.sort(chosen)] for level in patches])
        distances = pyramid_distance(*sides, seed=self.seed)
        levels = dict(zip(map(str, level_sizes(self.swd_size)), distances, strict=True))
        result.add("SWD", np.mean(distances), images_per_side=images, size=self.swd_size, levels=levels)

    @cached_property
    def _patches_of_real(self) -> list[np.ndarray]:
        return self._patches(self.real)

    def _patches(self, images: ImageSet) -> list[np.ndarray]:
        return pyramid_patches(images.squares(self.swd_size), self.swd_size, self.seed)

    def _features(self, network: FeatureNetwork, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        features, classes = extract(network, images.images(network.name), self.batch_size)
        if not np.isfinite(features).all():
            raise UserError(
                f"the {network.name} features of {images.folder} are not finite: damaged weights?"
            )
        return features, classes
