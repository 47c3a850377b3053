"""Show where PyTorch's batch norm and instance norm return a wrong gradient.

    python docs/pytorch_norm_gradient.py

Needs nothing but torch. Exits with status 1 where the gradient is wrong. Report: pytorch_norm_gradient.md.
"""

import sys

import torch
import torch.nn.functional as F


def formula(x):
    """(x - mean) / sqrt(var + 1e-5) over H and W; for one image, batch norm and instance norm alike."""
    mean = x.mean((2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def with_strides(values, strides):
    """The same numbers, stored with other strides."""
    return torch.empty_strided(values.shape, strides, dtype=values.dtype).copy_(values)


NORMS = {
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "instance_norm": lambda x: F.instance_norm(x),
    "group_norm": lambda x: F.group_norm(x, x.shape[1]),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[2:]),
}


def main():
    torch.manual_seed(0)
    n, c, h, w = 1, 3, 4, 5
    x = torch.randn(n, c, h, w, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(n, c, h, w, dtype=torch.float64)
    (right,) = torch.autograd.grad(formula(x), x, gradient)
    strides = {
        "contiguous": (c * h * w, h * w, w, 1),
        "channels_last": (c * h * w, 1, w * c, c),
        "channels_last, stride(0) = C": (c, 1, w * c, c),
        "channels_last, stride(0) = 0": (0, 1, w * c, c),
    }
    print(f"torch {torch.__version__}: median |gradient - right| / median |right|")
    print(f"{'incoming gradient':32}" + "".join(f"{name:>16}" for name in NORMS))
    worst = 0.0
    for name, of_gradient in strides.items():
        row = f"{name:32}"
        for norm in NORMS.values():
            (found,) = torch.autograd.grad(norm(x), x, with_strides(gradient, of_gradient))
            error = float((found - right).abs().median() / right.abs().median())
            worst = max(worst, error)
            row += f"{error:16.1e}"
        print(row)
    return 1 if worst > 1e-6 else 0


if __name__ == "__main__":
    sys.exit(main())
