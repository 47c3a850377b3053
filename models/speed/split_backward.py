"""A backward pass in two parts, the first of which need not wait for all losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Cut:
    """Tensors of a graph, and a leaf of the same value for each: what is computed from the leaves ends at them.

    A loss of the leaves can be differentiated at once, on the stream it was computed on. `backward` then takes the
    gradients that the leaves have gathered on through the graph, in one pass. Equal to a single pass but for the order
    in which gradients are added up.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = list(tensors)
        self.leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]

    def backward(self) -> None:
        """Differentiate the tensors, each from its leaf's gradient; those whose leaf has none are left out."""
        pairs = [
            (t, leaf.grad) for t, leaf in zip(self.tensors, self.leaves, strict=True) if leaf.grad is not None
        ]
        tensors, gradients = zip(*pairs, strict=True)
        torch.autograd.backward(tensors, gradients)
