"""The U-Net generator of pix2pix (Isola et al., CVPR 2017), with taps on its way down.

A U-Net has no single list of layers: `--nce_layers` names depths instead. Tap 0 is the input image, tap d the
raw output of the d-th strided convolution (after its normalisation where it has one), at 1/2^d of the size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers import NORMS, conv_has_bias
from util.errors import UserError


class UnetBlock(nn.Module):
    """One depth: down, through the next depth (`inner`), up, and joined to the input (but outermost)."""

    def __init__(
        self,
        outer_nc: int,
        inner_nc: int,
        input_nc: int,
        inner: UnetBlock | None,
        norm: str,
        dropout: bool,
        outermost: bool,
    ):
        super().__init__()
        bias = conv_has_bias(norm)
        down = [nn.Conv2d(input_nc, inner_nc, 4, stride=2, padding=1, bias=bias)]
        # The decoder sees its own features and the skipped ones, but at the bottom, where nothing is skipped.
        up_nc = inner_nc if inner is None else 2 * inner_nc
        up = [nn.ReLU(), nn.ConvTranspose2d(up_nc, outer_nc, 4, stride=2, padding=1, bias=bias or outermost)]
        if outermost:
            up.append(nn.Tanh())
        else:
            down.insert(0, nn.LeakyReLU(0.2))
            up.append(NORMS[norm](outer_nc))
            if inner is not None:
                down.append(NORMS[norm](inner_nc))
                if dropout:
                    up.append(nn.Dropout(0.5))
        self.outermost = outermost
        self.depth = len(down)
        self.model = nn.Sequential(*down, *([] if inner is None else [inner]), *up)

    @property
    def inner(self) -> UnetBlock | None:
        module = self.model[self.depth]
        return module if isinstance(module, UnetBlock) else None

    def forward(self, x: Tensor, taps: list[Tensor]) -> Tensor:
        """Append this depth's features and those below to `taps`; return the input of the depth above."""
        y = self.model[: self.depth](x)
        taps.append(y)
        up = self.model[self.depth :]
        if self.inner is not None:
            y = self.inner(y, taps)
            up = up[1:]
        y = up(y)
        return y if self.outermost else torch.cat([x, y], 1)


class UnetGenerator(nn.Module):
    """U-Net with `num_downs` halvings (8: `unet_256`, 7: `unet_128`); H, W multiples of 2^num_downs."""

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        num_downs: int = 8,
        ngf: int = 64,
        norm: str = "instance",
        dropout: bool = False,
    ):
        super().__init__()
        self.multiple = 2**num_downs
        block = UnetBlock(8 * ngf, 8 * ngf, 8 * ngf, None, norm, False, outermost=False)
        for _ in range(num_downs - 5):
            block = UnetBlock(8 * ngf, 8 * ngf, 8 * ngf, block, norm, dropout, outermost=False)
        for c in (4 * ngf, 2 * ngf, ngf):
            block = UnetBlock(c, 2 * c, c, block, norm, False, outermost=False)
        self.model = UnetBlock(output_nc, ngf, input_nc, block, norm, False, outermost=True)
        self._channels = [input_nc, *(ngf * min(2**d, 8) for d in range(num_downs))]

    def tap_channels(self) -> list[int]:
        """Channels of the features at each tap, by depth (0: the input image)."""
        return self._channels

    def forward(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Translate images; with `layers` also return the features at those depths, in that order."""
        if any(side % self.multiple for side in x.shape[2:]):
            raise UserError(
                f"an image of {x.shape[3]} x {x.shape[2]} pixels does not fit this U-Net, which halves it "
                f"{len(self._channels) - 1} times: both sides must be multiples of {self.multiple}"
            )
        taps = [x]
        y = self.model(x, taps)
        return y if layers is None else (y, [taps[depth] for depth in layers])

    def encode(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The features at the depths `layers`; goes no deeper than the last of them."""
        taps, block = [x], self.model
        while len(taps) <= max(layers):
            taps.append(block.model[: block.depth](taps[-1]))
            block = block.inner
        return [taps[depth] for depth in layers]
