"""Anti-aliased resampling by 2 (Zhang, "Making convolutional networks shift-invariant again", ICML 2019).

Both modules hold their binomial filter in a buffer `filt`, which the released checkpoints carry too. While a
network is being compiled they are written as sums of slices, one axis after the other: a compiler fuses those
with the layers around them, and their gradients are sums of slices again, without atomic additions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _binomial(taps: list[float], gain: float, channels: int) -> Tensor:
    """The separable filter taps x taps with sum `gain`, once per channel: (C, 1, k, k)."""
    row = torch.tensor(taps, device="cpu")  # also where a network is built on "meta", for its shapes alone
    kernel = torch.outer(row, row)
    return (gain * kernel / kernel.sum()).expand(channels, 1, -1, -1).clone()


def _halve(x: Tensor, dim: int) -> Tensor:
    """[1,2,1] / 4 at every second position of a padded `dim`: length n + 2 -> ceil(n / 2)."""
    n = (x.shape[dim] - 1) // 2
    before, at, behind = (x.narrow(dim, first, 2 * n - 1) for first in range(3))
    steps = (slice(None),) * dim + (slice(None, None, 2),)
    return (before[steps] + 2 * at[steps] + behind[steps]) * 0.25


def _double(x: Tensor, dim: int) -> Tensor:
    """Between its two nearest inputs 3 : 1 and 1 : 3 along `dim`, the border replicated: length n -> 2 n."""
    n = x.shape[dim]
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, n - 1)], dim)
    behind = torch.cat([x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)], dim)
    return torch.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * behind], dim + 1).flatten(dim, dim + 1)


class BlurDownsample(nn.Module):
    """Blur with [1,2,1] x [1,2,1] / 16 (reflected border) and halve: (B, C, ceil(H/2), ceil(W/2))."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", _binomial([1, 2, 1], 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        if torch.compiler.is_compiling():
            return _halve(_halve(x, 2), 3)
        return F.conv2d(x, self.filt.to(x.dtype), stride=2, groups=x.shape[1])


class BlurUpsample(nn.Module):
    """Insert zeros and blur with [1,3,3,1] x [1,3,3,1] / 16 (replicated border): (B, C, 2H, 2W).

    Every output pixel then mixes its two nearest inputs per axis with weights 3/4 and 1/4, which is bilinear
    interpolation by 2: computed so, since that kernel is faster than a depthwise transposed convolution on
    every device.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", _binomial([1, 3, 3, 1], 4, channels))

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # stacked as (B, H, W, C), which is channels-last
            x = _double(_double(x.permute(0, 2, 3, 1), 1), 2)
            return x.permute(0, 3, 1, 2)
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
