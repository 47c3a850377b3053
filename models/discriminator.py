"""The discriminators: PatchGAN (Isola et al., CVPR 2017), and the per-pixel one.

Each maps images (B, input_nc, H, W) to one score per patch, (B, 1, h, w), without a final sigmoid.
"""

from torch import Tensor, nn

from models.layers import NORMS, BlurDownsample, conv_has_bias, run_layers
from util.errors import UserError


class NLayerDiscriminator(nn.Module):
    """PatchGAN: `n_layers` halvings, then two convolutions; three halvings see 70 x 70 pixels."""

    run_layers = staticmethod(run_layers)

    def __init__(self, input_nc=3, ndf=64, n_layers=3, norm="instance", antialias=True, output_nc=1):
        super().__init__()
        # Each halving rounds down, the last two convolutions take one position each, one score must be left.
        self.smallest_side = 3 * 2**n_layers
        stride, layers = 1 if antialias else 2, []
        channels = [input_nc, *(ndf * min(2**n, 8) for n in range(n_layers + 1))]
        for number, (c_in, c_out) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
            halves, bias = number < n_layers, number == 0 or conv_has_bias(norm)
            layers.append(nn.Conv2d(c_in, c_out, 4, stride=stride if halves else 1, padding=1, bias=bias))
            layers += [NORMS[norm](c_out)] if number else []
            layers.append(nn.LeakyReLU(0.2, True))
            layers += [BlurDownsample(c_out)] if halves and antialias else []
        self.model = nn.Sequential(*layers, nn.Conv2d(channels[-1], output_nc, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        check_sides(x, self.smallest_side)
        return self.run_layers(self.model, x)[0]


class PixelDiscriminator(nn.Module):
    """Judges every pixel by itself with 1x1 convolutions: (B, C, H, W) -> (B, 1, H, W)."""

    smallest_side = 1

    def __init__(self, input_nc: int = 3, ndf: int = 64, norm: str = "instance"):
        super().__init__()
        bias = conv_has_bias(norm)
        self.net = nn.Sequential(
            nn.Conv2d(input_nc, ndf, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(ndf, 2 * ndf, 1, bias=bias),
            NORMS[norm](2 * ndf),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(2 * ndf, 1, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def check_sides(x: Tensor, smallest: int) -> None:
    """UserError where a side of images (B, C, H, W) is below `smallest`."""
    if min(x.shape[2:]) < smallest:
        found = f"an image of {x.shape[3]} x {x.shape[2]} pixels is too small for this discriminator"
        raise UserError(f"{found}: use {smallest} x {smallest} or more, or one with fewer halvings")
