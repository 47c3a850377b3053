"""Convolutions between images and features, on tensor cores.

Tensor cores multiply blocks of at least 8 by 8 channels, so a k x k convolution from or to an image's three
channels wastes most of their work: the generator's two 7 x 7 convolutions take a fifth of its time. Here each
pixel is joined with its k - 1 neighbours in the row, 3 k channels in place of 3, and a k x 1 convolution does
the rest: the same sums, regrouped. In half precision `collect` adds k numbers that are each already rounded,
where one convolution would round once.

    few inputs    y = conv_kx1(spread(x))    spread(x)[i C + c](h, w) = x[c](h, w + i - shift),  0 outside
    few outputs   y = collect(conv_kx1(x))   collect(z)[c](h, w) = sum over i of z[i C + c](h, w - i + shift)

`spread` and `collect` are each other's gradient. Shapes: B images, C channels of the image, i in 0 ... k - 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.speed.triton_support import jit, tl, trials, triton

FEW = 4  # channels at most of an image
MULTIPLE = 8  # of channels that tensor cores take


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution `layer` of x (B, C, H, W) channels-last, without its bias."""
    k, few = layer.kernel_size[1], min(layer.in_channels, layer.out_channels)
    plain = (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1)

    def trial() -> None:
        channels = k * few + -(k * few) % MULTIPLE
        image = x.new_ones((1, few, k, k))
        _move(_collect_kernel, _move(_spread_kernel, image, k, 0, k, channels), k, 0, k, few)

    thin = few <= FEW and layer.kernel_size == (k, k) and k > 3 and plain
    if not (thin and trials.allows("convolutions of few channels", (x.dtype, x.device, few, k), trial)):
        return F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    vertical, horizontal = layer.padding
    weight, width = layer.weight, x.shape[3] + 2 * horizontal - k + 1  # (outputs, inputs, k, k)
    if layer.in_channels <= FEW:
        weight = _fill(weight.permute(0, 3, 1, 2).flatten(1, 2)[..., None], 1)  # (outputs, i C + c, k, 1)
        x = _Shift.apply(x, True, k, horizontal, width, weight.shape[1])
        return F.conv2d(x, weight, padding=(vertical, 0))
    weight = _fill(weight.flip(3).permute(3, 0, 1, 2).flatten(0, 1)[..., None], 0)  # (i C + c, inputs, k, 1)
    z = F.conv2d(x, weight, padding=(vertical, 0))
    return _Shift.apply(z, False, k, k - 1 - horizontal, width, layer.out_channels)


def _fill(weight: Tensor, dim: int) -> Tensor:
    """Zeros behind a weight's channels, up to a multiple of MULTIPLE."""
    missing = -weight.shape[dim] % MULTIPLE
    weight = F.pad(weight, (0, 0, 0, 0, *(0, 0) * (1 - dim), 0, missing))
    return weight.contiguous(memory_format=torch.channels_last)


class _Shift(torch.autograd.Function):
    """`spread` or `collect` of x (B, C, H, W): (B, channels, H, width)."""

    @staticmethod
    def forward(ctx, x, spreads, k, shift, width, channels):
        ctx.arguments = not spreads, k, shift, x.shape[3], x.shape[1]
        return _move(_spread_kernel if spreads else _collect_kernel, x, k, shift, width, channels)

    @staticmethod
    def backward(ctx, grad):
        return _Shift.apply(grad, *ctx.arguments), *[None] * 5


def _move(kernel, x: Tensor, k: int, shift: int, width: int, channels: int) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    shape = (len(x), channels, x.shape[2], width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels, block_c = shape[0] * shape[2] * width, triton.next_power_of_2(channels)
    block_p = max(1, 1024 // block_c)
    sizes = x.shape[1], channels, x.shape[3], width, shift
    with torch.cuda.device_of(x):
        kernel[(triton.cdiv(pixels, block_p),)](x, out, pixels, *sizes, K=k, BLOCK_P=block_p, BLOCK_C=block_c)
    return out


@jit
def _spread_kernel(
    x, out, pixels, C, channels, width_in, width, shift,
    K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out (pixels, channels), pixels = (B, H, width): channel i C + c is x[c] at w + i - shift."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    i, c = channel // C, channel % C
    column = (p % width)[:, None] + (i - shift)[None, :]
    inside = (p < pixels)[:, None] & (i < K)[None, :] & (column >= 0) & (column < width_in)
    source = ((p // width)[:, None] * width_in + column).to(tl.int64) * C + c[None, :]
    value = tl.load(x + source, mask=inside, other=0.0)
    there = (p < pixels)[:, None] & (channel < channels)[None, :]
    tl.store(out + p[:, None].to(tl.int64) * channels + channel[None, :], value, mask=there)


@jit
def _collect_kernel(
    x, out, pixels, C, channels, width_in, width, shift,
    K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out (pixels, channels), pixels = (B, H, width): the sum of x[i channels + c] at w - i + shift."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    there = (p < pixels)[:, None] & (channel < channels)[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for i in tl.static_range(K):
        column = p % width - i + shift
        inside = there & ((column >= 0) & (column < width_in))[:, None]
        source = ((p // width) * width_in + column)[:, None].to(tl.int64) * C
        source += (i * channels + channel)[None, :]
        total += tl.load(x + source, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + p[:, None].to(tl.int64) * channels + channel[None, :], total, mask=there)
