"""The generators, with taps: ResNet (Johnson et al., ECCV 2016, as in CycleGAN), U-Net (pix2pix, CVPR 2017).

A tap is a number in `--nce_layers`. Of the ResNet it is the position of a module in `model`, as in the key
names of a checkpoint. Of the U-Net it is a depth: 0 is the image, d the raw output of the d-th strided
convolution (after its norm, if any), at 1/2^d of the size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers import NORMS, BlurDownsample, BlurUpsample, conv_has_bias, run_layers
from util.errors import UserError


class ResnetBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3, reflected borders. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, norm: str = "instance", dropout: bool = False):
        super().__init__()

        def conv() -> list[nn.Module]:
            kernel = nn.Conv2d(channels, channels, 3, bias=conv_has_bias(norm))
            return [nn.ReflectionPad2d(1), kernel, NORMS[norm](channels)]

        self.conv_block = nn.Sequential(*conv(), nn.ReLU(True), *[nn.Dropout(0.5)] * dropout, *conv())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    """Two downsamplings, `n_blocks` residual blocks, two upsamplings.

    Images (B, input_nc, H, W) in [-1, 1], H and W multiples of 4. `norm`: an entry of `NORMS`. `antialias`,
    `antialias_up`: blurred resampling; else strided and transposed convolutions.
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

        def normed(conv: nn.Module) -> list[nn.Module]:
            return [conv, NORMS[norm](conv.out_channels), nn.ReLU()]  # not in place: the norm may be a tap

        layers = [nn.ReflectionPad2d(3), *normed(nn.Conv2d(input_nc, ngf, 7, bias=bias))]
        for c in (ngf, 2 * ngf):
            stride = 1 if antialias else 2
            layers += normed(nn.Conv2d(c, 2 * c, 3, stride=stride, padding=1, bias=bias))
            layers += [BlurDownsample(2 * c)] if antialias else []
        layers += [ResnetBlock(4 * ngf, norm, dropout) for _ in range(n_blocks)]
        for c in (4 * ngf, 2 * ngf):
            if antialias_up:
                layers += [BlurUpsample(c), *normed(nn.Conv2d(c, c // 2, 3, padding=1, bias=bias))]
            else:
                layers += normed(nn.ConvTranspose2d(c, c // 2, 3, 2, padding=1, output_padding=1, bias=bias))
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(ngf, output_nc, 7), nn.Tanh())

    def tap_channels(self) -> list[int]:
        """Channels of the features at each tap, by its number."""
        channels = [self.input_nc]
        for module in self.model:
            channels.append(getattr(module, "out_channels", channels[-1]))
        return channels[1:]

    def forward(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Translate images; with `layers` also return the features at those taps, in that order."""
        output, taps = self.run_layers(self.model, x, layers or ())
        return output if layers is None else (output, taps)

    def encode(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The features at the taps `layers`."""
        return self.run_layers(self.model, x, layers, max(layers) + 1)[1]


class UnetBlock(nn.Module):
    """One depth: down, through `inner`, up, joined to the input; the outermost one has `input_nc`."""

    def __init__(
        self, outer_nc: int, nc: int, inner: "UnetBlock | None", norm: str, dropout=False, input_nc=None
    ):
        super().__init__()
        self.outermost = input_nc is not None
        bias = conv_has_bias(norm)
        down = [nn.Conv2d(input_nc or outer_nc, nc, 4, stride=2, padding=1, bias=bias)]
        # The decoder sees its own features and the skipped ones, but at the bottom, where nothing is skipped.
        up_nc, bias = nc if inner is None else 2 * nc, bias or self.outermost
        up = [nn.ReLU(), nn.ConvTranspose2d(up_nc, outer_nc, 4, stride=2, padding=1, bias=bias)]
        if self.outermost:
            up.append(nn.Tanh())
        else:
            down.insert(0, nn.LeakyReLU(0.2))
            up.append(NORMS[norm](outer_nc))
            if inner is not None:
                down.append(NORMS[norm](nc))
                up += [nn.Dropout(0.5)] * dropout
        self.depth = len(down)
        self.model = nn.Sequential(*down, *([] if inner is None else [inner]), *up)

    @property
    def inner(self) -> "UnetBlock | None":
        module = self.model[self.depth]
        return module if isinstance(module, UnetBlock) else None

    def forward(self, x: Tensor, taps: list[Tensor]) -> Tensor:
        """Append this depth's features and those below to `taps`; return the input of the depth above."""
        y = self.model[: self.depth](x)
        taps.append(y)
        up = self.model[self.depth :]
        if self.inner is not None:
            y, up = self.inner(y, taps), up[1:]
        y = up(y)
        return y if self.outermost else torch.cat([x, y], 1)


class UnetGenerator(nn.Module):
    """U-Net with `num_downs` halvings (8: `unet_256`, 7: `unet_128`); H, W multiples of 2^num_downs."""

    def __init__(
        self, input_nc: int, output_nc: int, num_downs: int, ngf: int, norm="instance", dropout=False
    ):
        super().__init__()
        self.multiple = 2**num_downs
        block = UnetBlock(8 * ngf, 8 * ngf, None, norm)
        for _ in range(num_downs - 5):
            block = UnetBlock(8 * ngf, 8 * ngf, block, norm, dropout)
        for c in (4 * ngf, 2 * ngf, ngf):
            block = UnetBlock(c, 2 * c, block, norm)
        self.model = UnetBlock(output_nc, ngf, block, norm, input_nc=input_nc)
        self._channels = [input_nc, *(ngf * min(2**d, 8) for d in range(num_downs))]

    def tap_channels(self) -> list[int]:
        """Channels of the features at each tap, by its number."""
        return self._channels

    def forward(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Translate images; with `layers` also return the features at those taps, in that order."""
        if any(side % self.multiple for side in x.shape[2:]):
            found = f"an image of {x.shape[3]} x {x.shape[2]} pixels does not fit this U-Net"
            raise UserError(f"{found}: both sides must be multiples of {self.multiple}")
        taps = [x]
        y = self.model(x, taps)
        return y if layers is None else (y, [taps[depth] for depth in layers])

    def encode(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The features at the taps `layers`."""
        taps, block = [x], self.model
        while len(taps) <= max(layers):
            taps.append(block.model[: block.depth](taps[-1]))
            block = block.inner
        return [taps[depth] for depth in layers]
