"""Features of VGG-16 (Simonyan and Zisserman, 2015), the fixed features of the spatially-correlative loss.

The weights are torchvision's, from a file that the user names. Layers are named by their number among the
network's ReLUs, from 0: 4, 7 and 9 are relu3_1, relu4_1 and relu4_3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from util.errors import UserError
from util.metrics.features import fill_network, read_state_dict, require_file

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
LABEL = "torchvision's VGG-16"
OPTION = "--vgg_weights"
RANDOM = "random"  # in place of a file

CHANNELS = (64, 128, 256, 512, 512)  # of each stage; a 2 x 2 maximum stands between two stages
CONVOLUTIONS = (2, 2, 3, 3, 3)  # in each stage, each with its ReLU
LAST_LAYER = sum(CONVOLUTIONS) - 1
LAYERS = (4, 7, 9)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]


def reduction(layer: int) -> int:
    """How many times smaller than the image the map of ReLU `layer` is, per side."""
    stage = next(s for s in range(len(CONVOLUTIONS)) if layer < sum(CONVOLUTIONS[: s + 1]))
    return 2**stage


class VGG16Features(nn.Module):
    """VGG-16 up to the deepest layer asked for; state-dict keys are torchvision's `features.N.*`.

    Args:
        layers: numbers of ReLUs, ascending, in [0, 12].
        channels: of the five stages; other than VGG-16's for tests.
    """

    def __init__(self, layers: Sequence[int] = LAYERS, channels: Sequence[int] = CHANNELS):
        super().__init__()
        layers = tuple(layers)
        if (
            not layers
            or list(layers) != sorted(set(layers))
            or not 0 <= layers[0] <= layers[-1] <= LAST_LAYER
        ):
            raise ValueError(
                f"VGG16Features: layers are {layers}, but must be ascending numbers of ReLUs in "
                f"[0, {LAST_LAYER}]"
            )
        self.layers = layers
        self.features, self.relus = _convolutions(channels, layers[-1])
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        # ((x + 1) / 2 - mean) / std as one scale and shift
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    @property
    def channels(self) -> list[int]:
        """C of each layer asked for."""
        return [self.features[self.relus[layer] - 1].out_channels for layer in self.layers]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Rectified features (B, C, H', W') of images (B, 3, H, W) in [-1, 1], one tensor per layer."""
        x = images * self.scale + self.shift
        wanted = {self.relus[layer] for layer in self.layers}
        taps = []
        for number, module in enumerate(self.features):
            x = module(x)
            if number in wanted:
                taps.append(x)
        return taps


def require_weights(weights: str | Path | None) -> None:
    """UserError where `weights` is neither "random" nor a file, without reading the file."""
    if str(weights) != RANDOM:
        require_file(weights, OPTION, LABEL, VGG16_URL)


def load_vgg16(
    weights: str | Path | None, layers: Sequence[int] = LAYERS, device: torch.device | str = "cpu"
) -> VGG16Features:
    """VGG-16 ready for use: frozen, in evaluation mode, on `device`.

    weights: torchvision's file vgg16-397923af.pth, or "random" for weights from a fixed seed (tests only: the
    loss then says nothing about structure as people see it). Raises `UserError` for a missing file, a file
    without a state dict, and the weights of another network. Nothing in the file is executed.
    """
    network = VGG16Features(layers)
    if str(weights) == RANDOM:
        draw_weights(network)
    else:
        state = read_state_dict(weights, OPTION, LABEL, VGG16_URL)
        wanted = network.state_dict()
        fits = all(key in state and state[key].shape == value.shape for key, value in wanted.items())
        # Deeper layers and the classifier are left out. Where anything is missing, describe the whole file.
        fill_network(
            network, {key: state[key] for key in wanted} if fits else state, weights, LABEL, VGG16_URL
        )
        _check_finite(state, weights)
    return network.eval().requires_grad_(False).to(device)


def draw_weights(network: nn.Module, seed: int = 0) -> None:
    """Draw the convolutions' weights from N(0, 2 / fan-in), the same for the same seed; biases become 0."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            with torch.no_grad():
                module.weight.normal_(0.0, (2 / fan_in) ** 0.5, generator=generator)
                module.bias.zero_()


def _convolutions(channels: Sequence[int], last: int) -> tuple[nn.Sequential, list[int]]:
    """The modules up to ReLU `last`, in torchvision's order, and the position of each ReLU among them."""
    modules: list[nn.Module] = []
    relus: list[int] = []
    before = 3
    for stage, (c, count) in enumerate(zip(channels, CONVOLUTIONS, strict=True)):
        if stage:
            modules.append(nn.MaxPool2d(2))
        for _ in range(count):
            modules += [nn.Conv2d(before, c, 3, padding=1), nn.ReLU(inplace=True)]
            relus.append(len(modules) - 1)
            before = c
            if len(relus) > last:
                return nn.Sequential(*modules), relus
    raise AssertionError(f"no ReLU number {last}")


def _check_finite(state: dict[str, Tensor], path: str | Path | None) -> None:
    """torchvision's other VGG-16 file expects other inputs (unscaled); its unused classifier is NaN."""
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{OPTION}: {path} holds numbers that are not finite in {key}: damaged, or the weights "
                f"of another training of VGG-16. Fetch {VGG16_URL}"
            )
