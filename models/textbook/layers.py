"""Textbook layers on a model's weights: torch's instance norm, blurs as depthwise convolutions."""

from __future__ import annotations

import copy
from itertools import chain

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import BlurDownsample, BlurUpsample, InstanceNorm, with_contiguous_gradient
from models.munit_networks import AdaIN, LayerNorm


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


class TextbookAdaIN(AdaIN):
    """Adaptive instance norm as the released code has it: a batch norm of one image with B * C channels."""

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        as_one = x.reshape(1, -1, *x.shape[2:])  # (1, B * C, H, W)
        y = F.batch_norm(as_one, None, None, scale.flatten(), shift.flatten(), training=True, eps=1e-5)
        return with_contiguous_gradient(y).view_as(x)


class TextbookLayerNorm(LayerNorm):
    """The layer norm as its definition has it: the deviation is unbiased, and eps is added to it."""

    def forward(self, x: Tensor) -> Tensor:
        of_images = x.flatten(1)  # (B, C * H * W)
        mean, deviation = (stat.view(-1, 1, 1, 1) for stat in (of_images.mean(1), of_images.std(1)))
        x = (x - mean) / (deviation + 1e-5)
        return x * self.gamma.view(1, -1, 1, 1) + self.beta.view(1, -1, 1, 1)


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
            elif isinstance(child, AdaIN):
                child.__class__ = TextbookAdaIN
            elif isinstance(child, LayerNorm):
                child.__class__ = TextbookLayerNorm
    return net
