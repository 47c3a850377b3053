"""Numbers of a set of translations against a set of real images, by the metrics and networks asked for.

An `Evaluator` holds the real side, which is worked through once however many sets are compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np

from util.errors import UserError
from util.metrics.features import FeatureNetwork, extract
from util.metrics.frechet import frechet_distance_of_features
from util.metrics.image_set import ImageSet
from util.metrics.kernel import kernel_inception_distance
from util.metrics.sliced_wasserstein import level_sizes, pyramid_distance, pyramid_patches


@dataclass
class Evaluation:
    """What comes of one comparison: a number per name, and under the same names what it was made from."""

    numbers: dict[str, float] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, number: float, **details: Any) -> None:
        self.numbers[name] = float(number)
        self.details[name] = details


def higher_is_better(name: str) -> bool:
    """Whether a number of this name improves by growing; distances do not."""
    return name.startswith("class-") or name == "stripes-gained"


class Evaluator:
    """Compares image sets with one real set.

    frechet, kernel: the networks whose distances are wanted; classes: pairs of a classifier and a class
    index, for the percentage of images put into it; swd_size: side in pixels at which patches are compared,
    None for no SWD; kid_subsets, kid_subset_size: see `kernel_inception_distance`; seed: of every random
    draw.
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
        self._real_features = cache(lambda network: self._features(network, real))

    def evaluate(self, fake: ImageSet) -> Evaluation:
        """Every metric of `fake` against the real set; deterministic, and up to rounding so at any batch size."""
        result = Evaluation()
        fake_features = cache(lambda network: self._features(network, fake))
        for network in self.frechet:
            fake_side, real_side = fake_features(network)[0], self._real_features(network)[0]
            distance = frechet_distance_of_features(fake_side, real_side)
            result.add(network.frechet_label, distance, network=network.name)
        for network in self.kernel:
            fake_side, real_side = fake_features(network)[0], self._real_features(network)[0]
            distance = kernel_inception_distance(
                fake_side, real_side, self.kid_subsets, self.kid_subset_size, self.seed
            )
            subsets = {"subsets": self.kid_subsets, "subset_size": distance.subset_size}
            result.add(network.kernel_label, distance.mean, network=network.name, std=distance.std, **subsets)
        for network, index in self.classes:
            fake_share, real_share = (
                100 * float((features(network)[1] == index).mean())
                for features in (fake_features, self._real_features)
            )
            name = f"class-{index}-{network.name}"
            result.add(name, fake_share, network=network.name, unit="%", real=real_share)
        if self.swd_size is not None:
            self._add_swd(result, fake)
        return result

    def _add_swd(self, result: Evaluation, fake: ImageSet) -> None:
        """SWD of equally many images a side: of the larger set a random part, drawn by the seed."""
        fake_patches = pyramid_patches(fake.squares(self.swd_size), self.swd_size, self.seed)
        images = min(len(fake), len(self.real))
        sides = []
        for patches in (fake_patches, self._real_patches):
            count = len(patches[0])
            chosen = np.sort(np.random.default_rng(self.seed).choice(count, images, replace=False))
            sides.append([level[chosen] for level in patches])
        distances = pyramid_distance(*sides, seed=self.seed)
        levels = dict(zip(map(str, level_sizes(self.swd_size)), distances, strict=True))
        result.add("SWD", np.mean(distances), images_per_side=images, size=self.swd_size, levels=levels)

    @cached_property
    def _real_patches(self) -> list[np.ndarray]:
        return pyramid_patches(self.real.squares(self.swd_size), self.swd_size, self.seed)

    def _features(self, network: FeatureNetwork, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        features, classes = extract(network, images.images(network.name), self.batch_size)
        if not np.isfinite(features).all():
            raise UserError(
                f"the {network.name} features of {images.folder} are not finite: damaged weights?"
            )
        return features, classes
