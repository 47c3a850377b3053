"""Runs the layers of a network with `models/fused_kernels.py` where they can take several at once; the rest as they are.

Taken together are the bias of a convolution, an instance norm, the activation or the residual sum behind it, and then a
reflected border or a blurred resampling; any of these may be missing. A tapped layer ends a group, but for the border of the
next one. Weights, taps and the function computed are those of the layers. A bias that nothing but an instance norm sees is
left out: the norm would take it away again, and its gradient is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.fused_kernels import MOST_NUMBERS, Tail, norm_act_resample
from models.normalisation import InstanceNorm
from models.resample import BlurDownsample, BlurUpsample
from models.thin_convolution import convolve

BRANCH, JOIN = "branch", "join"  # of a residual block: keep what comes in; add it to what comes out


class Piece(NamedTuple):
    """A layer, or BRANCH or JOIN, and whether its output is asked for under the number of a module."""

    layer: nn.Module | str
    tap: int | None


def run(
    model: nn.Sequential, x: Tensor, layers: Sequence[int] = (), stop: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The first `stop` modules of `model` on x (B, C, H, W): their output, and the outputs of the modules `layers`, in that order."""
    pieces = list(_pieces(model, layers, len(model) if stop is None else stop))
    if torch.is_autocast_enabled(x.device.type):  # before it is spread out, and not at the first convolution
        x = x.to(torch.get_autocast_dtype(x.device.type))
    x = x.contiguous(memory_format=torch.channels_last)
    taps: dict[int | None, Tensor] = {}
    branch, at = None, 0
    while at < len(pieces):
        convolution, tapped, bias = _convolution(pieces[at]), pieces[at].tap, None
        if convolution is not None:
            x = convolve(convolution, x)
            at, bias = at + 1, convolution.bias
        group = Group(pieces, at, x)
        if group.is_fused and (group.norm or tapped is None or convolution is None):
            if group.norm and tapped is None:
                bias = None
            x, y, t = norm_act_resample(
                x, bias=bias, residual=branch if group.join else None, **group.settings
            )
            if convolution is not None:
                taps[tapped] = x
            for piece in pieces[at : group.end]:
                if piece.layer == BRANCH:
                    branch = y
                taps[piece.tap] = t if piece is pieces[group.end - 1] else y
            x, at = t, group.end
            continue
        if convolution is not None:
            x = x if bias is None else x + bias.to(x.dtype)[:, None, None]
            taps[tapped] = x
            continue
        layer = pieces[at].layer
        if layer == BRANCH:
            branch = x
        elif layer == JOIN:
            x = branch + x
        else:
            x = layer(x)
        taps[tapped] = x
        at += 1
    return x, [taps[number] for number in layers]


def _convolution(piece: Piece) -> nn.Conv2d | None:
    """The convolution that a piece is, if its bias can be added later."""
    layer = piece.layer
    plain = type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return layer if plain else None


def _pieces(model: nn.Sequential, layers: Sequence[int], stop: int):
    for number, module in enumerate(model[:stop]):
        block = getattr(module, "conv_block", None)
        parts = [module] if block is None else [BRANCH, *block, JOIN]
        for part in parts[:-1]:
            yield Piece(part, None)
        yield Piece(parts[-1], number if number in layers else None)


def _is(pieces: list[Piece], at: int, kind: type | tuple[type, ...] | str) -> bool:
    if at >= len(pieces):
        return False
    layer = pieces[at].layer
    return layer == kind if isinstance(kind, str) else isinstance(layer, kind)


class Group:
    """What one call of the kernels takes of `pieces` from `at` on, for features like `x`; nothing where it would not pay."""

    def __init__(self, pieces: list[Piece], at: int, x: Tensor):
        norm, slope, self.join = _is(pieces, at, InstanceNorm), 1.0, False
        self.norm = norm
        tail, border, end = Tail.NONE, 0, at + norm
        if not norm or pieces[at].tap is None:
            if _is(pieces, end, (nn.ReLU, nn.LeakyReLU)):
                slope = getattr(pieces[end].layer, "negative_slope", 0.0)
                end += 1
            elif norm and _is(pieces, end, JOIN):
                self.join = True
                end += 1
        keep = end > at and pieces[end - 1].tap is not None
        behind = end + _is(pieces, end, BRANCH)
        if _is(pieces, behind, nn.ReflectionPad2d):
            border = pieces[behind].layer.padding[0]
            if border < min(x.shape[2:]):  # else the layer itself complains
                tail, keep, end = Tail.PAD, keep or behind > end, behind + 1
        elif not keep and _is(pieces, end, (BlurDownsample, BlurUpsample)):
            tail = Tail.DOWN if _is(pieces, end, BlurDownsample) else Tail.UP
            end += 1
        self.end = end
        fits = 4 * x[0].numel() <= MOST_NUMBERS
        self.is_fused = fits and (norm or tail != Tail.NONE)
        self.settings = {
            "norm": norm,
            "slope": slope,
            "tail": tail,
            "border": border,
            "keep": keep and tail == Tail.PAD,
        }
