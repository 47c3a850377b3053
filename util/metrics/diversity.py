"""How different a model's translations of one image are: LPIPS (Zhang et al., CVPR 2018, arXiv 1801.03924).

The distance of two images is a weighted one of their features in SqueezeNet. The package lpips brings the
weights that people's judgements gave; SqueezeNet's own are torchvision's file. MUNIT's paper reports the mean
over pairs of translations of one input, averaged over inputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from util.errors import UserError
from util.metrics.networks import classifier_weights, exact_convolutions

SQUEEZENET = "squeezenet1_1"


def load_lpips(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict[str, str]]:
    """LPIPS 0.1 on SqueezeNet, whose weights are in the file at `path`, and what a receipt says of it.

    Raises `UserError` for other weights, or if the package lpips is not installed.
    """
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise UserError("LPIPS needs the package lpips: pip install lpips") from error
    squeezenet = torchvision.models.squeezenet1_1(weights=None)
    record = classifier_weights(SQUEEZENET).fill(squeezenet, Path(path))
    with warnings.catch_warnings():  # it calls torchvision by names of old
        warnings.simplefilter("ignore")
        network = LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    features = squeezenet.features.state_dict()
    trunk = {name: features[name.partition(".")[2]] for name in network.net.state_dict()}  # slice1.0.weight
    network.net.load_state_dict(trunk)
    return network.eval().requires_grad_(False).to(device), record


@torch.inference_mode()
def diversity(inputs: Iterable[Iterable[Image.Image]], network: nn.Module) -> list[float]:
    """Of each input, given as its translations of one size, their mean LPIPS over all pairs."""
    device = next(network.parameters()).device
    found = []
    with exact_convolutions():
        for images in inputs:
            translations = [2 * to_tensor(image)[None].to(device) - 1 for image in images]
            found.append(np.mean([network(a, b).item() for a, b in combinations(translations, 2)]))
    return [float(distance) for distance in found]
