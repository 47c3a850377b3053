"""A backward pass in two parts, the first of which need not wait for all losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Cut:
    """Tensors of a graph, and for each a leaf of the same value to compute with.

    A loss of the leaves can be differentiated at once, on the stream that computed it: its backward pass
    ends at the leaves. `backward` then runs the rest of the graph from the leaves' gradients, in one pass.
    The result is that of a single pass, except for the order in which gradients are summed.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = list(tensors)
        self.leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]

    def backward(self) -> None:
        """Differentiate the tensors, each from the gradient of its leaf, where it has one."""
        pairs = [
            (t, leaf.grad) for t, leaf in zip(self.tensors, self.leaves, strict=True) if leaf.grad is not None
        ]
        tensors, gradients = zip(*pairs, strict=True)
        torch.autograd.backward(tensors, gradients)
