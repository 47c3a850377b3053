"""The ResNet generator (Johnson et al., ECCV 2016, as CycleGAN uses it) with taps for its encoder features.

The position of a module in `model` is its number in `--nce_layers` and in the key names of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.layers import NORMS, BlurDownsample, BlurUpsample, conv_has_bias, run_layers


class ResnetBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3, reflected borders. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, norm: str = "instance", dropout: bool = False):
        super().__init__()
        bias = conv_has_bias(norm)
        layers = [
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            NORMS[norm](channels),
            nn.ReLU(True),
        ]
        if dropout:
            layers.append(nn.Dropout(0.5))
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=bias), NORMS[norm](channels)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    """Two downsamplings, `n_blocks` residual blocks, two upsamplings.

    Images (B, input_nc, H, W) in [-1, 1], H and W multiples of 4.

    Args:
        norm: "instance", "batch" or "none".
        dropout: a Dropout(0.5) in each residual block.
        antialias, antialias_up: blurred resampling; else strided and transposed convolutions.
    """

    run_layers = staticmethod(run_layers)

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 64,
        n_blocks: int = 9,
        norm: str = "instance",
        dropout: bool = False,
        antialias: bool = True,
        antialias_up: bool = True,
    ):
        super().__init__()
        self.input_nc = input_nc
        bias = conv_has_bias(norm)

        def normed(channels: int) -> list[nn.Module]:
            return [NORMS[norm](channels), nn.ReLU()]  # not in place: the norm's output may be a tap

        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(input_nc, ngf, 7, bias=bias),
            *normed(ngf),
        ]
        for c in (ngf, 2 * ngf):
            if antialias:
                layers += [
                    nn.Conv2d(c, 2 * c, 3, padding=1, bias=bias),
                    *normed(2 * c),
                    BlurDownsample(2 * c),
                ]
            else:
                layers += [nn.Conv2d(c, 2 * c, 3, stride=2, padding=1, bias=bias), *normed(2 * c)]
        layers += [ResnetBlock(4 * ngf, norm, dropout) for _ in range(n_blocks)]
        for c in (4 * ngf, 2 * ngf):
            if antialias_up:
                layers += [BlurUpsample(c), nn.Conv2d(c, c // 2, 3, padding=1, bias=bias), *normed(c // 2)]
            else:
                layers += [
                    nn.ConvTranspose2d(c, c // 2, 3, 2, padding=1, output_padding=1, bias=bias),
                    *normed(c // 2),
                ]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, output_nc, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def tap_channels(self) -> list[int]:
        """Channels of the features at each tap, by layer number."""
        channels = [self.input_nc]
        for module in self.model:
            channels.append(getattr(module, "out_channels", channels[-1]))
        return channels[1:]

    def forward(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Translate images; with `layers` also return the features at those taps, in that order."""
        output, taps = self.run_layers(self.model, x, layers or ())
        return output if layers is None else (output, taps)

    def encode(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The features at the taps `layers`; runs no module after the last of them."""
        return self.run_layers(self.model, x, layers, max(layers) + 1)[1]
