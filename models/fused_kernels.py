"""Triton kernels for what stands between two convolutions: instance norm, activation, residual sum, and border or resampling.

On a GPU these chains are memory traffic and launches, not arithmetic, and PyTorch's kernels for them want NCHW where the
matrix units want channels-last. Here a chain is one pass over its input for the statistics and one that writes what the next
convolution reads; its gradient is two passes as well. With v = (x - mean) / sqrt(var + 1e-5) over H and W of each channel,

    y = act(v) + residual        act(v) = max(v, slope * v)
    t = tail(y)                  nothing, a reflected border, or a resampling by 2 of `models/resample.py`

A tail is linear and separable: an output is a weighted sum of at most `_TAPS` inputs an axis, and an input's gradient a sum
over at most `_TRANSPOSED_TAPS` outputs an axis, gathered, so that nothing is added atomically and results repeat bit for bit.

Arithmetic is float32 whatever the dtype; the variance comes of squared distances from means (tiles merged by Chan et al.,
1983), since a sum of squares would lose it beside a large mean. Shapes: x (B, C, H, W) channels-last.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.triton_support import jit, on_device_of, tl, triton

EPS = 1e-5
MOST_NUMBERS = 2**31 - 1  # of an image's features: offsets inside an image are 32 bits


class Tail(IntEnum):
    """What is done to y: nothing, a reflected border, [1,2,1] blur and every second pixel, or bilinear doubling."""

    NONE = 0
    PAD = 1
    DOWN = 2
    UP = 3


_TAPS = {Tail.NONE: 1, Tail.PAD: 1, Tail.DOWN: 3, Tail.UP: 2}
_TRANSPOSED_TAPS = {Tail.NONE: 1, Tail.PAD: 3, Tail.DOWN: 2, Tail.UP: 4}


def norm_act_resample(
    x: Tensor,
    *,
    norm: bool = True,
    slope: float = 1.0,
    residual: Tensor | None = None,
    tail: Tail = Tail.NONE,
    border: int = 0,
    keep: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """(y, t) of the module's formulas; y is None unless `keep`, and t is y where there is no tail.

    Args:
        x: (B, C, H, W) channels-last, float32 or bfloat16; both results have its dtype.
        norm: without it v is x.
        slope: of the activation below zero: 0 is ReLU, 1 none.
        residual: like x; it joins a normalised v without activation, as at the end of a residual block.
        border: width of the reflected border, less than H and W, of Tail.PAD.
        keep: y is wanted beside t; with Tail.PAD alone.

    Differentiable once, in x and residual.
    """
    assert not keep or tail in (Tail.NONE, Tail.PAD), tail
    assert residual is None or (norm and slope == 1), (norm, slope)
    x = x.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    y, t = _NormActResample.apply(x, residual, norm, slope, tail, border, keep)
    return (t, t) if tail == Tail.NONE else (y, t)


class _NormActResample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, norm, slope, tail, border, keep):
        B, C, H, W = x.shape
        grid = _Grid(x)
        ctx.settings = dict(NORM=norm, SLOPE=slope, TAIL=int(tail), BORDER=border, **grid.blocks)
        ctx.keep = keep = keep and tail == Tail.PAD
        ctx.has_residual = residual is not None
        height, width = _size_behind(tail, border, H, W)
        t = _empty_like(x, height, width)
        y = _empty_like(x, H, W) if keep else None
        partial = x.new_empty((B, grid.splits, 2, C), dtype=torch.float32) if norm else x
        statistics = x.new_empty((B, 2, C), dtype=torch.float32) if norm else x
        with on_device_of(x):
            if norm:
                _moments[grid.over_splits](x, partial, C, H * W, TILES=grid.tiles, **grid.blocks)
            _apply[grid.over_positions(height * width)](
                x, x if residual is None else residual, partial, statistics, t if y is None else y, t,
                C, H, W, height, width, SPLITS=grid.splits, TILES=grid.tiles, RESIDUAL=ctx.has_residual, KEEP=keep,
                TAPS=_TAPS[tail], EPS=EPS, **ctx.settings,
            )  # fmt: skip
        ctx.save_for_backward(x, statistics)
        ctx.set_materialize_grads(False)
        return y, t

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_t):
        x, statistics = ctx.saved_tensors
        settings, norm = ctx.settings, ctx.settings["NORM"]
        B, C, H, W = x.shape
        grid, tail = _Grid(x), Tail(settings["TAIL"])
        height, width = _size_behind(tail, settings["BORDER"], H, W)
        grads = [None if grad is None else grad.contiguous(memory_format=torch.channels_last) for grad in (grad_y, grad_t)]
        grad_y, grad_t = (x if grad is None else grad for grad in grads)
        inner = _empty_like(x, H, W)  # the gradient behind the norm, before the activation
        partial = x.new_empty((B, grid.splits, 2, C), dtype=torch.float32) if norm else x
        with on_device_of(x):
            _gather_gradient[grid.over_splits](
                x, statistics, grad_y, grad_t, inner, partial, C, H, W, height, width, TILES=grid.tiles,
                HAS_Y=grads[0] is not None, HAS_T=grads[1] is not None, TAPS=_TRANSPOSED_TAPS[tail], **settings,
            )  # fmt: skip
            if not norm:
                return inner, *[None] * 6
            grad_x = _empty_like(x, H, W)
            _apply_gradient[grid.over_positions(H * W)](
                x, statistics, inner, partial, grad_x, C, H * W, SPLITS=grid.splits, **grid.blocks
            )
        return grad_x, (inner if ctx.has_residual else None), *[None] * 5


class _Grid:
    """How a tensor (B, C, H, W) is cut: tiles of positions by channels, and `splits` runs of tiles for its statistics.

    It depends on C, H and W alone, lest an image's result depend on its batch.
    """

    def __init__(self, x: Tensor):
        self.batch, channels, height, width = x.shape
        positions = height * width
        block_c = min(64, triton.next_power_of_2(channels))  # 128 bytes of bfloat16: a memory transaction
        block_p = min(4096 // block_c, triton.next_power_of_2(positions))
        self.blocks = {"BLOCK_P": block_p, "BLOCK_C": block_c}
        self.channel_blocks = triton.cdiv(channels, block_c)
        # 256 positions a split: enough programs to fill a GPU, few enough for the next kernel to add up
        wanted = min(64, triton.next_power_of_2(triton.cdiv(positions, 256)))
        self.tiles = triton.cdiv(positions, block_p * wanted)
        self.splits = wanted
        self.over_splits = (self.splits, self.channel_blocks, self.batch)

    def over_positions(self, positions: int) -> tuple[int, int, int]:
        return triton.cdiv(positions, self.blocks["BLOCK_P"]), self.channel_blocks, self.batch


def _size_behind(tail: Tail, border: int, H: int, W: int) -> tuple[int, int]:
    if tail == Tail.PAD:
        return H + 2 * border, W + 2 * border
    if tail == Tail.DOWN:
        return (H + 1) // 2, (W + 1) // 2
    return (2 * H, 2 * W) if tail == Tail.UP else (H, W)


def _empty_like(x: Tensor, height: int, width: int) -> Tensor:
    shape = (*x.shape[:2], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@jit
def _source(o, n, tap, TAIL: tl.constexpr, BORDER: tl.constexpr):
    """Input index and weight of a tap of output index o, on an axis of n inputs."""
    i = o
    weight = tl.full(o.shape, 1.0, tl.float32)
    if TAIL == 1:  # reflected border
        i = tl.abs(o - BORDER)
        i = tl.where(i > n - 1, 2 * (n - 1) - i, i)
    if TAIL == 2:  # [1,2,1] / 4 around every second input, reflected
        i = tl.abs(2 * o - 1 + tap)
        i = tl.where(i > n - 1, 2 * (n - 1) - i, i)
        weight = tl.full(o.shape, 0.5 if tap == 1 else 0.25, tl.float32)
    if TAIL == 3:  # 3 : 1 between the two nearest inputs, replicated
        i = o // 2
        if tap == 1:
            i = tl.minimum(tl.maximum(i - 1 + 2 * (o % 2), 0), n - 1)
        weight = tl.full(o.shape, 0.25 if tap == 1 else 0.75, tl.float32)
    return i, weight


@jit
def _target(i, n, tap, TAIL: tl.constexpr, BORDER: tl.constexpr):
    """The transpose of `_source`: an output index that input i of n goes into, and with what weight; 0 for none."""
    o = i
    weight = tl.full(i.shape, 1.0, tl.float32)
    if TAIL == 1:
        if tap == 0:
            o = i + BORDER
        if tap == 1:
            o = BORDER - i
            weight = tl.where((i >= 1) & (i <= BORDER), 1.0, 0.0)
        if tap == 2:
            o = BORDER + 2 * (n - 1) - i
            weight = tl.where((i >= n - 1 - BORDER) & (i <= n - 2), 1.0, 0.0)
    if TAIL == 2:
        odd = i % 2
        if tap == 0:  # the output at or before i; the first one reflects on input 1
            o = i // 2
            weight = tl.where(odd == 0, 0.5, tl.where(i == 1, 0.5, 0.25))
        if tap == 1:  # the one after an odd i; the last one reflects on input n - 2 where n is odd
            o = (i + 1) // 2
            weight = tl.where(odd == 0, 0.0, tl.where((i == n - 2) & (n % 2 == 1), 0.5, 0.25))
            weight = tl.where(2 * o < n, weight, 0.0)
    if TAIL == 3:
        o = 2 * i - 1 + tap
        weight = tl.full(i.shape, 0.75 if (tap == 1 or tap == 2) else 0.25, tl.float32)
        if tap == 0:
            weight = tl.where(i == 0, 0.0, weight)
        if tap == 1:
            weight = tl.where(i == 0, 1.0, weight)
        if tap == 2:
            weight = tl.where(i == n - 1, 1.0, weight)
        if tap == 3:
            weight = tl.where(i == n - 1, 0.0, weight)
    return o, weight


@jit
def _count(start, positions, size):
    """How many of `size` positions from `start` on there are."""
    return tl.minimum(tl.maximum(positions - start, 0), size).to(tl.float32)


@jit
def _moments(
    x, partial, C, positions,
    TILES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared distances from it over each split of the positions -> partial (B, splits, 2, C)."""
    split, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += batch * positions * C
    mean = tl.zeros((BLOCK_C,), tl.float32)
    squares = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(TILES):
        start = (split * TILES + tile) * BLOCK_P
        p = start + tl.arange(0, BLOCK_P)
        inside = (p < positions)[:, None] & (channels < C)[None, :]
        values = tl.load(x + p[:, None] * C + channels[None, :], mask=inside, other=0.0).to(tl.float32)
        before = _count(split * TILES * BLOCK_P, positions, tile * BLOCK_P)
        here = _count(start, positions, BLOCK_P)
        tile_mean = tl.sum(values, 0) / tl.maximum(here, 1.0)
        distance = tl.where(inside, values - tile_mean[None, :], 0.0)
        shift, share = tile_mean - mean, here / tl.maximum(before + here, 1.0)
        mean += shift * share
        squares += tl.sum(distance * distance, 0) + shift * shift * before * share
    partial += (batch * tl.num_programs(0) + split) * 2 * C + channels
    tl.store(partial, mean, mask=channels < C)
    tl.store(partial + C, squares, mask=channels < C)


@jit
def _apply(
    x, residual, partial, statistics, y, t, C, H, W, height, width,
    SPLITS: tl.constexpr, TILES: tl.constexpr, NORM: tl.constexpr, SLOPE: tl.constexpr, RESIDUAL: tl.constexpr,
    KEEP: tl.constexpr, TAIL: tl.constexpr, BORDER: tl.constexpr, TAPS: tl.constexpr, EPS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_P positions of t (height, width) from x (H, W), and those of y that stand at them in a border's inside."""
    batch = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channels < C
    x += batch * H * W * C
    residual += batch * H * W * C
    if NORM:
        splits = tl.arange(0, SPLITS)
        cells = partial + (batch * SPLITS + splits[:, None]) * 2 * C + channels[None, :]  # (splits, channels)
        means = tl.load(cells, mask=is_channel[None, :], other=0.0)
        squares = tl.load(cells + C, mask=is_channel[None, :], other=0.0)
        counts = _count(splits * TILES * BLOCK_P, H * W, TILES * BLOCK_P)[:, None]
        mean = tl.sum(counts * means, 0) / (H * W)
        distance = means - mean[None, :]
        variance = tl.sum(squares + counts * distance * distance, 0) / (H * W)
        scale = 1.0 / tl.sqrt(variance + EPS)
        if tl.program_id(0) == 0:  # for the gradient
            kept = statistics + batch * 2 * C + channels
            tl.store(kept, mean, mask=is_channel)
            tl.store(kept + C, scale, mask=is_channel)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    is_position = p < height * width
    row, column = p // width, p % width
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for tap_y in tl.static_range(TAPS):
        source_row, weight_row = _source(row, H, tap_y, TAIL, BORDER)
        for tap_x in tl.static_range(TAPS):
            source_column, weight_column = _source(column, W, tap_x, TAIL, BORDER)
            cells = (source_row * W + source_column)[:, None] * C + channels[None, :]
            inside = is_position[:, None] & is_channel[None, :]
            value = tl.load(x + cells, mask=inside, other=0.0).to(tl.float32)
            if NORM:
                value = (value - mean[None, :]) * scale[None, :]
            if SLOPE != 1:
                value = tl.maximum(value, SLOPE * value)
            if RESIDUAL:
                value += tl.load(residual + cells, mask=inside, other=0.0).to(tl.float32)
            if KEEP:  # a border has one tap
                own = (row >= BORDER) & (row < BORDER + H) & (column >= BORDER) & (column < BORDER + W)
                tl.store(y + batch * H * W * C + cells, value, mask=inside & own[:, None])
            total += (weight_row * weight_column)[:, None] * value
    cells = p[:, None] * C + channels[None, :]
    tl.store(t + batch * height * width * C + cells, total, mask=is_position[:, None] & is_channel[None, :])


@jit
def _gather_gradient(
    x, statistics, grad_y, grad_t, inner, partial, C, H, W, height, width,
    TILES: tl.constexpr, NORM: tl.constexpr, SLOPE: tl.constexpr, HAS_Y: tl.constexpr, HAS_T: tl.constexpr,
    TAIL: tl.constexpr, BORDER: tl.constexpr, TAPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of v for each split of the positions -> inner, its sum and its sum times v -> partial (B, splits, 2, C)."""
    split, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channels < C
    x += batch * H * W * C
    grad_y += batch * H * W * C
    grad_t += batch * height * width * C
    inner += batch * H * W * C
    if NORM:
        statistics += batch * 2 * C + channels
        mean = tl.load(statistics, mask=is_channel, other=0.0)
        scale = tl.load(statistics + C, mask=is_channel, other=0.0)
    sum_g = tl.zeros((BLOCK_C,), tl.float32)
    sum_gv = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(TILES):
        p = (split * TILES + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (p < H * W)[:, None] & is_channel[None, :]
        cells = p[:, None] * C + channels[None, :]
        g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        if HAS_Y:
            g += tl.load(grad_y + cells, mask=inside, other=0.0).to(tl.float32)
        if HAS_T:
            row, column = p // W, p % W
            for tap_y in tl.static_range(TAPS):
                target_row, weight_row = _target(row, H, tap_y, TAIL, BORDER)
                for tap_x in tl.static_range(TAPS):
                    target_column, weight_column = _target(column, W, tap_x, TAIL, BORDER)
                    weight = weight_row * weight_column
                    targets = (target_row * width + target_column)[:, None] * C + channels[None, :]
                    there = inside & (weight > 0)[:, None]
                    g += weight[:, None] * tl.load(grad_t + targets, mask=there, other=0.0).to(tl.float32)
        if NORM or SLOPE != 1:
            value = tl.load(x + cells, mask=inside, other=0.0).to(tl.float32)
            if NORM:
                value = (value - mean[None, :]) * scale[None, :]
            if SLOPE != 1:
                g = tl.where(value > 0, g, SLOPE * g)
            if NORM:
                sum_g += tl.sum(g, 0)
                sum_gv += tl.sum(tl.where(inside, g * value, 0.0), 0)
        tl.store(inner + cells, g, mask=inside)
    if NORM:
        partial += (batch * tl.num_programs(0) + split) * 2 * C + channels
        tl.store(partial, sum_g, mask=is_channel)
        tl.store(partial + C, sum_gv, mask=is_channel)


@jit
def _apply_gradient(
    x, statistics, inner, partial, grad_x, C, positions,
    SPLITS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of the norm: scale * (g - mean of g - v * mean of g v), g being `inner`."""
    batch = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channels < C
    statistics += batch * 2 * C + channels
    mean = tl.load(statistics, mask=is_channel, other=0.0)
    scale = tl.load(statistics + C, mask=is_channel, other=0.0)
    splits = tl.arange(0, SPLITS)
    sums = partial + (batch * SPLITS + splits[:, None]) * 2 * C + channels[None, :]  # (splits, channels)
    mean_g = tl.sum(tl.load(sums, mask=is_channel[None, :], other=0.0), 0) / positions
    mean_gv = tl.sum(tl.load(sums + C, mask=is_channel[None, :], other=0.0), 0) / positions
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    cells = batch * positions * C + p[:, None] * C + channels[None, :]
    inside = (p < positions)[:, None] & is_channel[None, :]
    value = (tl.load(x + cells, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
    g = tl.load(inner + cells, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad_x + cells, scale[None, :] * (g - mean_g[None, :] - value * mean_gv[None, :]), mask=inside)
