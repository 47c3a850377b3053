"""The norms against their formulas and finite differences, and the fault of PyTorch that they keep out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.layers import BatchNorm, InstanceNorm, with_contiguous_gradient


class FormulaNorm(nn.BatchNorm2d):
    """Batch norm in training, as its formula has it; its gradient is autograd's own."""

    def forward(self, x):
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        normalised = (x - mean) / (variance + self.eps).sqrt()
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]


def strided_like(values, strides):
    """The values of a tensor in memory of other strides."""
    return torch.empty_strided(values.shape, strides, dtype=values.dtype).copy_(values)


# Strides of a gradient (1, C, H, W) for C = 3, H = 4, W = 5.
STRIDES = {
    "contiguous": (60, 20, 5, 1),
    "channels last": (60, 1, 15, 3),
    "channels last, of a matrix product": (3, 1, 15, 3),
    "expanded": (0, 1, 15, 3),
}


@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_do_not_depend_on_the_strides_they_arrive_with(strides, dtype):
    """PyTorch's batch norm fails for the last two, its instance norm for the last three."""
    x = torch.randn(1, 3, 4, 5, dtype=dtype, requires_grad=True)
    incoming = torch.randn(1, 3, 4, 5, dtype=dtype)
    right = torch.autograd.grad(FormulaNorm(3).to(dtype)(x), x, incoming)[0]
    guarded = lambda x: with_contiguous_gradient(F.instance_norm(x))  # noqa: E731
    for norm in (BatchNorm(3).to(dtype), InstanceNorm(), guarded):
        (grad,) = torch.autograd.grad(norm(x), x, strided_like(incoming, strides))
        torch.testing.assert_close(grad, right, rtol=1e-4, atol=1e-5)
