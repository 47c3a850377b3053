"""Features of VGG-16 (Simonyan and Zisserman, 2015), the fixed features of the spatially-correlative loss.

The network and its weights are torchvision's; the user names the file of weights. Layers are named by their
number among the network's ReLUs, from 0: 4, 7 and 9 are relu3_1, relu4_1 and relu4_3.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from util.weight_files import Published

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG16 = Published("torchvision's VGG-16", "--vgg_weights", VGG16_URL)
RANDOM = "random"  # in place of a file
WIDTHS = tuple(cfgs["D"])  # channels of each convolution and its ReLU; "M": a 2 x 2 maximum
LAYERS, LAST_LAYER = (4, 7, 9), 12
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]


def up_to(layer: int, widths: Sequence[int | str] = WIDTHS) -> Sequence[int | str]:
    """The part of `widths` that ends with ReLU `layer`."""
    return widths[: [n for n, width in enumerate(widths) if width != "M"][layer] + 1]


class VGG16Features(nn.Module):
    """VGG-16 up to the last of `layers`, ascending numbers of ReLUs; keys are torchvision's `features.N.*`.

    `widths` are other than VGG-16's for tests. `channels` are C of each of `layers`.
    """

    def __init__(self, layers: Sequence[int] = LAYERS, widths: Sequence[int | str] = WIDTHS):
        super().__init__()
        self.features = make_layers(list(up_to(layers[-1], widths)))
        relus = [n for n, module in enumerate(self.features) if isinstance(module, nn.ReLU)]
        self.taps = [relus[layer] for layer in layers]
        self.channels = [self.features[tap - 1].out_channels for tap in self.taps]
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        # ((x + 1) / 2 - mean) / std as one scale and shift
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Rectified features (B, C, H', W') of images (B, 3, H, W) in [-1, 1], one tensor per layer."""
        x = images * self.scale + self.shift
        found = []
        for number, module in enumerate(self.features):
            x = module(x)
            if number in self.taps:
                found.append(x)
        return found


def load_vgg16(
    weights: str | Path | None, layers: Sequence[int] = LAYERS, device: torch.device | str = "cpu"
) -> VGG16Features:
    """VGG-16, frozen, with the weights of torchvision's file (None: that of torch's cache), or "random" ones.

    UserError for a missing file and for one that holds anything else.
    """
    network = VGG16Features(layers)
    if str(weights) == RANDOM:
        draw_weights(network)
    else:
        wanted = network.state_dict()  # without deeper layers and the classifier
        VGG16.fill(network, VGG16.find(weights), lambda name: name if name in wanted else "")
    return network.eval().requires_grad_(False).to(device)


def draw_weights(network: nn.Module) -> None:
    """Draw the convolutions' weights from N(0, 2 / fan-in), the same each time; biases become 0."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            with torch.no_grad():
                deviation = (2 / module.weight[0].numel()) ** 0.5
                module.weight.normal_(0.0, deviation, generator=generator)
                module.bias.zero_()
