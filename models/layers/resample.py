"""Anti-aliased resampling by 2 (Zhang, "Making convolutional networks shift-invariant again", ICML 2019).

Both modules hold their binomial filter in a buffer `filt`, which the released checkpoints carry too.
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


class BlurDownsample(nn.Module):
    """Blur with [1,2,1] x [1,2,1] / 16 (reflected border) and halve: (B, C, ceil(H/2), ceil(W/2))."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", _binomial([1, 2, 1], 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
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
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
