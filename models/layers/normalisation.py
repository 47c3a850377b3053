"""The normalisation layers behind `--normG` and `--normD`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InstanceNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) over H and W of each image and channel (Ulyanov et al., 2016). (B, C, H, W).

    No parameters and no running statistics, so images of a batch do not mix. It is computed as a layer norm over (H, W):
    `torch.nn.InstanceNorm2d` returns a wrong gradient on the CPU (seen in torch 2.13 and 2.15) for a batch of one whose
    incoming gradient has other strides than its input, as gradients of gathered and routed features do
    (tests/test_normalisation.py shows it).
    """

    EPS = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # layer_norm would have the compiler keep gradients in NCHW
            variance, mean = torch.var_mean(x.float(), (2, 3), correction=0, keepdim=True)
            return (x.float() - mean) * (variance + self.EPS).rsqrt()
        return F.layer_norm(x, x.shape[2:], eps=self.EPS)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda channels: InstanceNorm(),
    "batch": nn.BatchNorm2d,
    "none": lambda channels: nn.Identity(),
}


def conv_has_bias(norm: str) -> bool:
    """Whether a convolution before this normalisation carries a bias, as the released checkpoints have it."""
    return norm == "instance"
