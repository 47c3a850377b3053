"""Runs groups of a network's layers as one call of `models/speed/fused_kernels.py` each, where it can.

A group is the bias of a convolution, an instance norm, the activation or the residual sum behind it, and then
a reflected border or a blurred resampling; any of these may be missing. A group ends at a tapped layer; only
the border of the next convolution may still join it. A bias that only an instance norm sees is left out: the
norm cancels it, and its gradient is zero.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers import BlurDownsample, BlurUpsample, InstanceNorm
from models.speed.fused_kernels import MOST_IMAGES, MOST_NUMBERS, Tail, norm_act_resample, works_for
from models.speed.thin_convolution import convolve

BRANCH, JOIN = "branch", "join"  # of a residual block: keep what comes in; add it to what comes out


class Piece(NamedTuple):
    """A layer, or BRANCH or JOIN, and its tap number, if its output is a tap."""

    layer: nn.Module | str
    tap: int | None


def run(
    model: nn.Sequential, x: Tensor, layers: Sequence[int] = (), stop: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Run `model[:stop]` on x (B, C, H, W); return its output and those of the modules `layers`, in order."""
    pieces = list(_pieces(model, layers, len(model) if stop is None else stop))
    if torch.is_autocast_enabled(x.device.type):  # before a thin convolution spreads it out
        x = x.to(torch.get_autocast_dtype(x.device.type))
    x = x.contiguous(memory_format=torch.channels_last)
    taps: dict[int, Tensor] = {}
    branch, at = None, 0
    while at < len(pieces):
        layer, tap = pieces[at]
        bias = None
        deferred = type(layer) is nn.Conv2d and layer.padding_mode == "zeros"  # its bias can be added later
        convolution = layer if deferred and not isinstance(layer.padding, str) else None
        if convolution is not None:
            x = convolve(convolution, x)
            at, bias = at + 1, convolution.bias
        group = find_group(pieces, at, x)
        # bias and residual sum as the kernels would take them
        inner = None if group and group.norm and tap is None else bias
        residual = branch if group and group.join else None
        fits = group and (group.norm or tap is None or convolution is None)
        if fits and works_for(x, inner, residual, group.settings):
            biased, y, t = norm_act_resample(x, bias=inner, residual=residual, **group.settings)
            if convolution is not None and tap is not None:
                taps[tap] = x if biased is None else biased
            for piece in pieces[at : group.end]:
                if piece.layer == BRANCH:
                    branch = y
                if piece.tap is not None:
                    taps[piece.tap] = t if piece is pieces[group.end - 1] else y
            x, at = t, group.end
            continue
        if convolution is not None:
            x = x if bias is None else x + bias.to(x.dtype)[:, None, None]
        else:
            at += 1
            if layer == BRANCH:
                branch = x
            elif layer == JOIN:
                x = branch + x
            else:
                x = layer(x)
        if tap is not None:
            taps[tap] = x
    return x, [taps[number] for number in layers]


def _pieces(model: nn.Sequential, layers: Sequence[int], stop: int):
    for number, module in enumerate(model[:stop]):
        block = getattr(module, "conv_block", None)
        parts = [module] if block is None else [BRANCH, *block, JOIN]
        for part in parts[:-1]:
            yield Piece(part, None)
        yield Piece(parts[-1], number if number in layers else None)


def _is(pieces: list[Piece], at: int, kind: type | tuple[type, ...] | str) -> bool:
    layer = pieces[at].layer if at < len(pieces) else None
    return layer == kind if isinstance(kind, str) else isinstance(layer, kind)


class Group(NamedTuple):
    """Pieces that one call of the kernels takes, up to `end`."""

    end: int
    norm: bool
    join: bool
    settings: dict[str, object]


def find_group(pieces: list[Piece], at: int, x: Tensor) -> Group | None:
    """The group of `pieces` from `at` on for features like `x`; None if kernels cannot, or would not pay."""
    if 4 * x[0].numel() > MOST_NUMBERS or len(x) > MOST_IMAGES:
        return None
    norm, slope, join = _is(pieces, at, InstanceNorm), 1.0, False
    tail, border, end = Tail.NONE, 0, at + norm
    if not norm or pieces[at].tap is None:
        if _is(pieces, end, (nn.ReLU, nn.LeakyReLU)):
            slope = getattr(pieces[end].layer, "negative_slope", 0.0)
            end += 1
        elif norm and _is(pieces, end, JOIN):
            join = True
            end += 1
    keep = end > at and pieces[end - 1].tap is not None
    after = end + _is(pieces, end, BRANCH)
    if _is(pieces, after, nn.ReflectionPad2d):
        border = pieces[after].layer.padding[0]
        if border < min(x.shape[2:]):  # else the layer itself complains
            tail, keep, end = Tail.PAD, keep or after > end, after + 1
    elif not keep and min(x.shape[2:]) > 1 and _is(pieces, end, (BlurDownsample, BlurUpsample)):
        tail = Tail.DOWN if _is(pieces, end, BlurDownsample) else Tail.UP
        end += 1
    if not (norm or tail) or not 0 <= slope <= 1:
        return None
    settings = {"norm": norm, "slope": slope, "tail": tail, "border": border}
    return Group(end, norm, join, {**settings, "keep": keep and tail == Tail.PAD})
