"""How different two images are: DINO's structure distance of a translation from its input, and LPIPS."""

from collections.abc import Iterable, Sequence
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms

from util.errors import UserError
from util.metrics.networks import FeatureNetwork, exact_convolutions


@torch.inference_mode()
def structure_distance(
    inputs: Iterable[Image.Image], translations: Iterable[Image.Image], dino: FeatureNetwork, batch_size=4
) -> list[float]:
    """How much each translation changes its input's layout: RGB images in the same order -> [0, 4] each.

    As published by Splice (Tumanyan et al., CVPR 2022, sec. 3), with k_1 ... k_T the keys of the last
    attention layer, all heads side by side, the class token among them:

        S_ij = cos(k_i, k_j)        distance = mean_ij (S_ij(input) - S_ij(translation))^2
    """
    device = next(dino.module.parameters()).device
    distances: list[float] = []
    pairs = zip(inputs, translations, strict=True)
    with exact_convolutions():
        while batch := [dino.prepare(image) for pair in islice(pairs, batch_size) for image in pair]:
            keys = F.normalize(dino.module(torch.stack(batch).to(device)), dim=-1)  # (2 n, T, D)
            maps = (keys @ keys.mT).unflatten(0, (-1, 2))  # (n, 2, T, T)
            distances += (maps[:, 0] - maps[:, 1]).square().mean((1, 2)).tolist()
    return distances


def check_pairs(inputs: Sequence[Path], translations: Sequence[Path]) -> None:
    """UserError unless the files, each in its order, belong together by name; endings may differ."""
    sides = [[path.stem for path in paths] for paths in (inputs, translations)]
    if sides[0] != sides[1]:
        lone = [*sorted(set(sides[0]) ^ set(sides[1])), "some names twice"][0]
        folders = f"{inputs[0].parent} and {translations[0].parent}"
        raise UserError(f"each translation needs the input of its name, but of {folders} only one has {lone}")


@torch.inference_mode()
def diversity(inputs: Iterable[Iterable[Image.Image]], network: nn.Module) -> list[float]:
    """Of each input, given as its translations of one size, their mean LPIPS over all pairs."""
    device = next(network.parameters()).device
    found = []
    with exact_convolutions():
        for images in inputs:
            translations = [
                2 * transforms.functional.to_tensor(image)[None].to(device) - 1 for image in images
            ]
            distances = [network(a, b).item() for a, b in combinations(translations, 2)]
            found.append(float(np.mean(distances)))
    return found
