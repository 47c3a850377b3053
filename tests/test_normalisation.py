"""Instance norm against its formula and finite differences, and the bug of PyTorch's own that makes us not use it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from textbook import instance_norm_bug

from models.layers.normalisation import InstanceNorm


def test_instance_norm_is_its_formula():
    x = 3 * torch.randn(2, 3, 5, 4) + 1
    y = InstanceNorm()(x)
    for b in range(2):
        for c in range(3):
            plane = x[b, c]
            expected = (plane - plane.mean()) / (plane.var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(y[b, c], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradient_by_finite_differences(layout):
    """Whatever the strides of the incoming gradient, at batch one, where PyTorch's instance norm goes wrong."""
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    cotangent = torch.randn(1, 3, 4, 5, dtype=torch.float64).to(memory_format=layout)
    expected, nudge = torch.empty_like(x), 1e-6
    for i in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=torch.float64).index_fill(0, torch.tensor(i), nudge).view_as(x)
        rise = InstanceNorm()(x + step) - InstanceNorm()(x - step)
        expected.view(-1)[i] = (rise * cotangent).sum() / (2 * nudge)
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-5)):
        leaf = x.to(dtype).requires_grad_()
        (grad,) = torch.autograd.grad(InstanceNorm()(leaf), leaf, cotangent.to(dtype))
        torch.testing.assert_close(grad, expected.to(dtype), rtol=tolerance, atol=tolerance)


def test_the_bug_of_pytorchs_own():
    """Same input, same numbers coming in: the gradient must not depend on strides. Where it no longer does, it may come back."""
    if not instance_norm_bug():
        pytest.skip("this PyTorch has a right torch.nn.InstanceNorm2d")
    x = torch.randn(1, 8, 16, 16, requires_grad=True)
    cotangent = torch.randn(1, 8, 16, 16)
    strided = cotangent.to(memory_format=torch.channels_last)
    for norm, right in ((F.instance_norm, False), (InstanceNorm(), True)):
        grads = [torch.autograd.grad(norm(x), x, incoming)[0] for incoming in (cotangent, strided)]
        assert torch.allclose(*grads, rtol=1e-4, atol=1e-5) == right
