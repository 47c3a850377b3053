"""Textbook layers on a model's weights: torch's instance norm, blurs as depthwise convolutions."""

from __future__ import annotations

import copy
from itertools import chain

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import BlurDownsample, BlurUpsample, InstanceNorm, with_contiguous_gradient


class DepthwiseDownsample(BlurDownsample):
    """The blur as its definition has it: a depthwise convolution with `filt`."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.filt, stride=2, groups=x.shape[1])


class DepthwiseUpsample(BlurUpsample):
    """The blur as its definition has it: a depthwise transposed convolution with `filt`, less its border."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.conv_transpose2d(x, self.filt, stride=2, padding=2, groups=x.shape[1])[:, :, 1:-1, 1:-1]


class TextbookNorm(nn.Module):
    """`torch.nn.InstanceNorm2d` without a count of channels, its gradient right (models/layers.py)."""

    def forward(self, x: Tensor) -> Tensor:
        return with_contiguous_gradient(F.instance_norm(x))


def plain_network(net: nn.Module) -> nn.Module:
    """`net` with the same parameters and buffers, not copies of them, but textbook layers."""
    shared = {id(tensor): tensor for tensor in chain(net.parameters(), net.buffers())}
    net = copy.deepcopy(net, shared)
    vars(net).pop("run_layers", None)
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, InstanceNorm):
                setattr(parent, name, TextbookNorm())
            elif isinstance(child, BlurDownsample):
                child.__class__ = DepthwiseDownsample
            elif isinstance(child, BlurUpsample):
                child.__class__ = DepthwiseUpsample
    return net
