"""The normalisation layers behind `--normG` and `--normD`, and a fault of PyTorch that they keep out.

On the CPU, PyTorch's batch norm and instance norm return a wrong gradient for their input, without a
warning, where

- the batch is of one image, and
- the incoming gradient is dense and channels-last: strides 1 for C, C for W, W * C for H. `instance_norm`
  fails for each such gradient; `batch_norm` if also its input is NCHW and the gradient's batch stride is less
  than C * H * W. That stride has no meaning for one image; matrix products and views leave any number there.

The values are then read in another order: the error is as large as the gradient. Precision, affine
parameters, training or evaluation mode, 2d or 3d make no difference; larger batches, `layer_norm` and
`group_norm` are right (seen in torch 2.6 and 2.15). Features routed through attention, or gathered as rows,
get such gradients. docs/pytorch_norm_gradient.md is a report with a short script.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


def with_contiguous_gradient(x: Tensor) -> Tensor:
    """`x`, output of a PyTorch norm; its gradient is made contiguous where the fault could strike."""
    if x.requires_grad and x.device.type == "cpu" and len(x) == 1:
        x.register_hook(Tensor.contiguous)
    return x


class InstanceNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) over H and W of each image and channel (Ulyanov et al., 2016).

    No parameters and no running statistics, so images of a batch do not mix. It is computed as a layer norm
    over (H, W), which is faster than `torch.nn.InstanceNorm2d` on the CPU and free of its fault.
    """

    EPS = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[2:], eps=self.EPS)


class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with a right gradient for a batch of one on the CPU too. (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return with_contiguous_gradient(super().forward(x))


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda channels: InstanceNorm(),
    "batch": BatchNorm,
    "none": lambda channels: nn.Identity(),
}


def conv_has_bias(norm: str) -> bool:
    """Whether a convolution before this normalisation carries a bias, as the released checkpoints have it."""
    return norm == "instance"
