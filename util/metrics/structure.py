"""DINO structure distance: how much a translation changes the layout of its input.

As published by Splice (Tumanyan et al., CVPR 2022, sec. 3) and reported for unpaired translation by
img2img-turbo (Parmar et al., 2024): with k_1 ... k_T the keys of the last attention layer of DINO ViT-B/8,
all heads side by side, the class token among them,

    S_ij = cos(k_i, k_j)        distance = mean_ij (S_ij(input) - S_ij(translation))^2

Preprocessing, the same for both: RGB; the shorter side scaled to 224 pixels, bilinear with antialiasing as
Pillow does, the longer one in proportion and rounded down; [0, 1]; minus the ImageNet mean (0.485, 0.456,
0.406), divided by the ImageNet standard deviation (0.229, 0.224, 0.225). Of sides that are not multiples of 8
the rest is cut off. 0 is equal structure; img2img-turbo's tables print 100 times the mean over images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms

from util.errors import UserError
from util.metrics.dino import SIDE, DinoNetwork
from util.metrics.features import exact_convolutions

prepare = transforms.Compose(
    [
        transforms.Resize(SIDE, transforms.InterpolationMode.BILINEAR, antialias=True),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


@torch.inference_mode()
def structure_distance(
    inputs: Iterable[Image.Image],
    translations: Iterable[Image.Image],
    network: DinoNetwork,
    batch_size: int = 4,
) -> list[float]:
    """The distance of each input from its translation, RGB images in the same order; each in [0, 4].

    Computed in float32 without TF32, each pair apart from the others: `batch_size` (pairs) moves only the
    rounding. Raises `UserError` where the numbers of images differ, where a translation's shape differs from
    its input's after preprocessing, and where a distance is not finite.
    """
    device = next(network.module.parameters()).device
    distances: list[float] = []
    with exact_convolutions():
        for pairs in _batches(_prepared(inputs, translations), batch_size):
            keys = network.module.keys(pairs.flatten(0, 1).to(device))  # (2 n, T, D)
            maps = key_similarity(keys).unflatten(0, (-1, 2))  # (n, 2, T, T)
            distances += (maps[:, 0] - maps[:, 1]).square().mean((1, 2)).tolist()
    if not all(distance < float("inf") for distance in distances):
        raise UserError(
            "the structure distance is not finite: are the weights given with --dino_weights damaged?"
        )
    return distances


def check_pairs(inputs: Sequence[Path], translations: Sequence[Path]) -> None:
    """UserError unless the files, each in its order, belong together by name; endings may differ."""
    for source, translation in zip_longest(inputs, translations):
        if source is None or translation is None or source.stem != translation.stem:
            found = [str(path) if path else "no further file" for path in (source, translation)]
            raise UserError(
                "structure distance: each translation needs the input of its name, but here "
                f"{found[0]} meets {found[1]}"
            )


def key_similarity(keys: Tensor) -> Tensor:
    """Cosine similarity of all pairs of keys (B, T, D): (B, T, T)."""
    keys = F.normalize(keys, dim=-1)
    return keys @ keys.transpose(1, 2)


def _prepared(inputs: Iterable[Image.Image], translations: Iterable[Image.Image]) -> Iterator[Tensor]:
    """Input and translation, ready for the network: (2, 3, h, w)."""
    for number, (image, translation) in enumerate(zip_longest(inputs, translations), 1):
        if image is None or translation is None:
            more, fewer = ("inputs", "translations") if translation is None else ("translations", "inputs")
            raise UserError(
                f"structure distance: there are more {more} than {fewer} ({number - 1}); each input needs "
                "one translation"
            )
        pair = [prepare(image), prepare(translation)]
        if pair[0].shape != pair[1].shape:
            sizes = (f"{picture.width} x {picture.height}" for picture in (image, translation))
            raise UserError(
                f"structure distance: input {number} is {' and its translation '.join(sizes)} pixels; their "
                "aspect ratios must agree. Compare with the input as it was translated, after --preprocess."
            )
        yield torch.stack(pair)


def _batches(pairs: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Up to `batch_size` successive pairs of one shape stacked: (n, 2, 3, h, w)."""
    waiting: list[Tensor] = []
    for pair in pairs:
        if waiting and (len(waiting) == batch_size or pair.shape != waiting[0].shape):
            yield torch.stack(waiting)
            waiting.clear()
        waiting.append(pair)
    if waiting:
        yield torch.stack(waiting)
