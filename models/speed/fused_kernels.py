"""Triton kernels for the layers between two convolutions: norm, activation, residual sum, border, resampling.

On a GPU these chains are memory traffic and launches, and PyTorch's kernels for them expect NCHW where
tensor cores expect channels-last. Here a chain is one pass over its input for the statistics and one that
writes what the next convolution reads; its gradient takes two passes. With mean and variance over H and W,

    v = (x - mean) / sqrt(var + 1e-5)
    y = act(v) + residual    act(v) = max(v, slope * v)
    t = tail(y)              nothing, a reflected border, or a resampling by 2 (`models/layers.py`)

A tail is linear and separable: an output is a weighted sum of at most `_TAPS` inputs per axis, and an input's
gradient a sum over at most `_TRANSPOSED_TAPS` outputs per axis. These are gathered rather than added
atomically, so results are the same bit for bit in every run.

The bias of a convolution before a norm has no effect and is left out, unless x itself is tapped; it is then
added in the pass for the statistics, and its gradient summed in the pass that gathers. Arithmetic is float32.
The variance comes from squared distances (merged over splits by Chan et al., 1983): a sum of squares would
lose it beside a large mean. Shapes: x (B, C, H, W) channels-last.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.layers import InstanceNorm
from models.speed.triton_support import jit, tl, trials, triton

EPS = InstanceNorm.EPS
MOST_NUMBERS = 2**31 - 1  # of an image's features: offsets inside an image are 32 bits
MOST_IMAGES = 2**16 - 1  # of a batch, an axis of the grid


class Tail(IntEnum):
    """What is done to y: nothing, a reflected border, [1,2,1] blur at every second pixel, or doubling."""

    NONE = 0
    PAD = 1
    DOWN = 2
    UP = 3


_TAPS = {Tail.NONE: 1, Tail.PAD: 1, Tail.DOWN: 3, Tail.UP: 2}
_TRANSPOSED_TAPS = {Tail.NONE: 1, Tail.PAD: 3, Tail.DOWN: 2, Tail.UP: 4}


def norm_act_resample(
    x: Tensor,
    *,
    bias: Tensor | None = None,
    norm: bool = True,
    slope: float = 1.0,
    residual: Tensor | None = None,
    tail: Tail = Tail.NONE,
    border: int = 0,
    keep: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """(x + bias, y, t) of the module's formulas. Differentiable once, in x, bias and residual.

    x + bias is returned only with both a bias and a norm, y only with `keep` or without a tail; else None.

    Args:
        x: (B, C, H, W), float32 or bfloat16, like the results; overwritten with bias and norm.
        bias: (C,) of the convolution before, where that matters: without a norm, or where x + bias is wanted.
        norm: without it v is x + bias.
        slope: of the activation below zero, in [0, 1]: 0 is ReLU, 1 none.
        residual: like x; it joins a normalised v without activation, as at the end of a residual block.
        border: width of the reflected border, less than H and W, of Tail.PAD.
        keep: y is wanted beside t, with Tail.PAD.
    """
    assert 0 <= slope <= 1, slope
    assert not keep or tail == Tail.PAD, tail
    assert residual is None or (norm and slope == 1), (norm, slope)
    x = _channels_last(x)
    x, y, t = _NormActResample.apply(x, bias, _channels_last(residual), norm, slope, tail, border, keep)
    return (x, t, t) if tail == Tail.NONE else (x, y, t)


def works_for(x: Tensor, bias: Tensor | None, residual: Tensor | None, settings: dict[str, object]) -> bool:
    """Whether `norm_act_resample` and its gradient work for such arguments, by trial at the first call."""
    graded, constants = torch.is_grad_enabled(), _Grid(x).constants
    variant = x.dtype, x.device, *constants, bias is None, residual is None, *settings.values(), graded

    def trial() -> None:
        given = [t if t is None else torch.ones_like(t, requires_grad=graded) for t in (x, bias, residual)]
        outputs = norm_act_resample(given[0] * 1, bias=given[1], residual=given[2], **settings)
        if graded:
            sum(output.sum() for output in outputs if output is not None).backward()

    name = "fused layers (norm {norm}, slope {slope:g}, tail {tail.name})".format(**settings)
    return trials.allows(name, variant, trial)


def _channels_last(x: Tensor | None) -> Tensor | None:
    return x if x is None else x.contiguous(memory_format=torch.channels_last)


class _NormActResample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, residual, norm, slope, tail, border, keep):
        B, C, H, W = x.shape
        grid = _Grid(x)
        ctx.settings = dict(NORM=norm, SLOPE=slope, TAIL=int(tail), BORDER=border)
        height, width = _size_after(tail, border, H, W)
        t = _empty_like(x, height, width)
        y = _empty_like(x, H, W) if keep else None
        statistics = _moments(x, bias, grid) if norm else x
        with torch.cuda.device_of(x):
            _apply_kernel[grid.over_positions(height * width)](
                x, x if bias is None else bias, x if residual is None else residual, statistics,
                t if y is None else y, t, C, H, W, height, width, BIAS=bias is not None and not norm,
                RESIDUAL=residual is not None, KEEP=y is not None,
                TAPS=_TAPS[tail], **ctx.settings, **grid.blocks,
            )  # fmt: skip
        ctx.save_for_backward(x, bias, statistics)
        ctx.has_residual = residual is not None
        ctx.set_materialize_grads(False)
        if norm and bias is not None:
            ctx.mark_dirty(x)
            return x, y, t
        return None, y, t

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_x, grad_y, grad_t):
        x, bias, statistics = ctx.saved_tensors
        settings, norm = ctx.settings, ctx.settings["NORM"]
        B, C, H, W = x.shape
        grid, tail = _Grid(x), Tail(settings["TAIL"])
        height, width = _size_after(tail, settings["BORDER"], H, W)
        grads = list(map(_channels_last, (grad_x, grad_y, grad_t)))
        has = {f"HAS_{name}": grad is not None for name, grad in zip("XYT", grads, strict=True)}
        grad_x, grad_y, grad_t = (x if grad is None else grad for grad in grads)
        inner = _empty_like(x, H, W)  # the gradient of v
        partial = x.new_empty((B, grid.splits, 3, C), dtype=torch.float32)
        sums = x.new_empty((B, 3, C), dtype=torch.float32)
        with torch.cuda.device_of(x):
            _gather_gradient_kernel[grid.over_splits](
                x, x if bias is None else bias, statistics, grad_x, grad_y, grad_t, inner, partial,
                C, H, W, height, width, BIAS=bias is not None and not norm, TAPS=_TRANSPOSED_TAPS[tail],
                **has, **settings, **grid.smaller_tiles,
            )  # fmt: skip
            if norm or bias is not None:
                rows = 3 if has["HAS_X"] else 2 if norm else 1
                splits = {"SPLITS": grid.splits, "ROWS": rows}
                _sum_kernel[grid.over_channels](partial, sums, C, **splits, **grid.few_channels)
            grad_input = _empty_like(x, H, W) if norm else inner
            if norm:
                given = x, statistics, grad_x, inner, sums, grad_input, C, H * W
                _apply_gradient_kernel[grid.over_positions(H * W)](*given, HAS_X=has["HAS_X"], **grid.blocks)
        grad_bias = None
        if bias is not None and (has["HAS_X"] or not norm):
            grad_bias = sums[:, 2 if norm else 0].sum(0).to(bias.dtype)
        return grad_input, grad_bias, (inner if ctx.has_residual else None), *[None] * 5


def _moments(x: Tensor, bias: Tensor | None, grid: _Grid) -> Tensor:
    """Mean and 1 / sqrt(variance + EPS) of each channel, (B, 2, C); adds `bias` to x first."""
    B, C, H, W = x.shape
    partial = x.new_empty((B, grid.splits, 2, C), dtype=torch.float32)
    statistics = x.new_empty((B, 2, C), dtype=torch.float32)
    with torch.cuda.device_of(x):
        given = x, x if bias is None else bias, partial, C, H * W
        _moments_kernel[grid.over_splits](*given, TILES=grid.tiles, BIAS=bias is not None, **grid.blocks)
        given = partial, statistics, C, H * W, grid.tiles * grid.blocks["BLOCK_P"]
        _merge_kernel[grid.over_channels](*given, SPLITS=grid.splits, EPS=EPS, **grid.few_channels)
    return statistics


class _Grid:
    """How a tensor (B, C, H, W) is cut: tiles of positions by channels, and `splits` runs of tiles for sums.

    It depends on C, H and W alone, so that an image's result does not depend on its batch. About 512 programs
    per image keep enough memory transactions under way.
    """

    def __init__(self, x: Tensor):
        self.batch, channels, height, width = x.shape
        positions = height * width
        block_c = min(64, triton.next_power_of_2(channels))
        block_p = min(4096 // block_c, triton.next_power_of_2(positions))
        self.blocks = {"BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": 4}
        self.channel_blocks = triton.cdiv(channels, block_c)
        tiles = triton.cdiv(positions, block_p)
        wanted = max(1, min(256, 512 // self.channel_blocks, tiles))
        self.tiles = triton.cdiv(tiles, wanted)
        self.splits = triton.next_power_of_2(wanted)
        self.over_splits = (self.splits, self.channel_blocks, self.batch)
        self.constants = block_p, block_c, self.tiles, self.splits  # all that kernels are compiled for
        fewer = min(2, block_p)  # where gathering needs the registers
        self.smaller_tiles = {**self.blocks, "BLOCK_P": block_p // fewer, "TILES": self.tiles * fewer}
        self.few_channels = {"BLOCK_C": min(16, block_c)}
        self.over_channels = (triton.cdiv(channels, self.few_channels["BLOCK_C"]), self.batch)

    def over_positions(self, positions: int) -> tuple[int, int, int]:
        return triton.cdiv(positions, self.blocks["BLOCK_P"]), self.channel_blocks, self.batch


def _size_after(tail: Tail, border: int, H: int, W: int) -> tuple[int, int]:
    if tail == Tail.DOWN:
        return (H + 1) // 2, (W + 1) // 2
    factor, border = (2 if tail == Tail.UP else 1), (border if tail == Tail.PAD else 0)
    return factor * H + 2 * border, factor * W + 2 * border


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
    """The transpose of `_source`: an output index that input i of n goes into, and its weight; 0 for none."""
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
def _moments_kernel(
    x, bias, partial, C, positions,
    TILES: tl.constexpr, BIAS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared distances from it over each split of x -> partial (B, splits, 2, C)."""
    split, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channels < C
    x += batch * positions * C
    start = split * TILES * BLOCK_P
    shift = tl.zeros((BLOCK_C,), tl.float32)
    if BIAS:
        shift = tl.load(bias + channels, mask=is_channel, other=0.0).to(tl.float32)
    # distances from a value of the split itself: squares of them lose nothing beside a large mean
    first = tl.minimum(start, positions - 1)  # a split without positions has a count of 0
    one = tl.load(x + first * C + channels, mask=is_channel, other=0.0).to(tl.float32) + shift
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)  # added up over positions at the end, not in every tile
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    tl.debug_barrier()  # the value is read before it is overwritten with its bias
    for tile in range(TILES):
        p = start + tile * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (p < positions)[:, None] & is_channel[None, :]
        cells = p[:, None] * C + channels[None, :]
        values = tl.load(x + cells, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            values += shift[None, :]
            tl.store(x + cells, values, mask=inside)
        distance = tl.where(inside, values - one[None, :], 0.0)
        total += distance
        squares += distance * distance
    count = tl.maximum(_count(start, positions, TILES * BLOCK_P), 1.0)
    offset = tl.sum(total, 0) / count
    mean = one + offset
    squares_of_split = tl.sum(squares, 0) - offset * offset * count
    partial += (batch * tl.num_programs(0) + split) * 2 * C + channels
    tl.store(partial, mean, mask=is_channel)
    tl.store(partial + C, squares_of_split, mask=is_channel)


@jit
def _merge_kernel(
    partial, statistics, C, positions, positions_of_a_split,
    SPLITS: tl.constexpr, EPS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial (B, splits, 2, C) -> statistics (B, 2, C): the mean and 1 / sqrt(variance + EPS)."""
    batch = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    splits = tl.arange(0, SPLITS)
    cells = partial + (batch * SPLITS + splits[:, None]) * 2 * C + channels[None, :]  # (splits, channels)
    means = tl.load(cells, mask=(channels < C)[None, :], other=0.0)
    squares = tl.load(cells + C, mask=(channels < C)[None, :], other=0.0)
    counts = _count(splits * positions_of_a_split, positions, positions_of_a_split)[:, None]
    mean = tl.sum(counts * means, 0) / positions
    distance = means - mean[None, :]
    variance = tl.sum(squares + counts * distance * distance, 0) / positions
    statistics += batch * 2 * C + channels
    tl.store(statistics, mean, mask=channels < C)
    tl.store(statistics + C, 1.0 / tl.sqrt(variance + EPS), mask=channels < C)


@jit
def _sum_kernel(
    partial, sums, C, SPLITS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The first `ROWS` of partial (B, splits, 3, C) -> sums (B, 3, C)."""
    batch = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    splits = tl.arange(0, SPLITS)
    for row in tl.static_range(ROWS):
        cells = partial + ((batch * SPLITS + splits[:, None]) * 3 + row) * C + channels[None, :]
        total = tl.sum(tl.load(cells, mask=(channels < C)[None, :], other=0.0), 0)
        tl.store(sums + (batch * 3 + row) * C + channels, total, mask=channels < C)


@jit
def _shift_and_scale(statistics, bias, batch, channels, C, NORM: tl.constexpr, BIAS: tl.constexpr):
    """Of v = (x - shift) * scale, for the channels of a program."""
    is_channel = channels < C
    shift = tl.zeros(channels.shape, tl.float32)
    scale = tl.full(channels.shape, 1.0, tl.float32)
    if NORM:
        shift = tl.load(statistics + batch * 2 * C + channels, mask=is_channel, other=0.0)
        scale = tl.load(statistics + (batch * 2 + 1) * C + channels, mask=is_channel, other=0.0)
    if BIAS:
        shift = -tl.load(bias + channels, mask=is_channel, other=0.0).to(tl.float32)
    return shift, scale


@jit
def _apply_kernel(
    x, bias, residual, statistics, y, t, C, H, W, height, width,
    NORM: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr, RESIDUAL: tl.constexpr, KEEP: tl.constexpr,
    TAIL: tl.constexpr, BORDER: tl.constexpr, TAPS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_P positions of t (height, width) from x (H, W), and those of y within a border."""
    batch = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channels < C
    x += batch * H * W * C
    residual += batch * H * W * C
    shift, scale = _shift_and_scale(statistics, bias, batch, channels, C, NORM, BIAS)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (p < height * width)[:, None] & is_channel[None, :]
    row, column = p // width, p % width
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for tap_y in tl.static_range(TAPS):
        source_row, weight_row = _source(row, H, tap_y, TAIL, BORDER)
        for tap_x in tl.static_range(TAPS):
            source_column, weight_column = _source(column, W, tap_x, TAIL, BORDER)
            cells = (source_row * W + source_column)[:, None] * C + channels[None, :]
            value = tl.load(x + cells, mask=inside, other=0.0).to(tl.float32)
            value = (value - shift[None, :]) * scale[None, :]
            if SLOPE != 1:
                value = tl.maximum(value, SLOPE * value)
            if RESIDUAL:
                value += tl.load(residual + cells, mask=inside, other=0.0).to(tl.float32)
            if KEEP:  # a border has one tap
                own = (row >= BORDER) & (row < BORDER + H) & (column >= BORDER) & (column < BORDER + W)
                tl.store(y + batch * H * W * C + cells, value, mask=inside & own[:, None])
            total += (weight_row * weight_column)[:, None] * value
    cells = p[:, None] * C + channels[None, :]
    tl.store(t + batch * height * width * C + cells, total, mask=inside)


@jit
def _gather_gradient_kernel(
    x, bias, statistics, grad_x, grad_y, grad_t, inner, partial, C, H, W, height, width,
    TILES: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr,
    HAS_X: tl.constexpr, HAS_Y: tl.constexpr, HAS_T: tl.constexpr,
    TAIL: tl.constexpr, BORDER: tl.constexpr, TAPS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of v -> inner; over each split, its sum, its sum times v, and the sum of grad_x
    -> partial (B, splits, 3, C)."""
    split, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channels < C
    x += batch * H * W * C
    grad_x += batch * H * W * C
    grad_y += batch * H * W * C
    grad_t += batch * height * width * C
    inner += batch * H * W * C
    shift, scale = _shift_and_scale(statistics, bias, batch, channels, C, NORM, BIAS)
    sum_g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)  # added up over positions at the end, not in every tile
    sum_gv = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_x = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for tile in range(TILES):
        p = (split * TILES + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (p < H * W)[:, None] & is_channel[None, :]
        cells = p[:, None] * C + channels[None, :]
        g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        if HAS_X:
            sum_x += tl.load(grad_x + cells, mask=inside, other=0.0).to(tl.float32)
        if HAS_Y:
            g += tl.load(grad_y + cells, mask=inside, other=0.0).to(tl.float32)
        if HAS_T:
            row, column = p // W, p % W
            for tap_y in tl.static_range(TAPS):
                target_row, weight_row = _target(row, H, tap_y, TAIL, BORDER)
                if tl.max(weight_row) > 0:  # most tiles hold no row that a border reflects
                    for tap_x in tl.static_range(TAPS):
                        target_column, weight_column = _target(column, W, tap_x, TAIL, BORDER)
                        weight = weight_row * weight_column
                        targets = (target_row * width + target_column)[:, None] * C + channels[None, :]
                        there = inside & (weight > 0)[:, None]
                        g += weight[:, None] * tl.load(grad_t + targets, mask=there, other=0.0).to(tl.float32)
        if NORM or SLOPE != 1:
            value = tl.load(x + cells, mask=inside, other=0.0).to(tl.float32)
            value = (value - shift[None, :]) * scale[None, :]
            if SLOPE != 1:
                g = tl.where(value > 0, g, SLOPE * g)
            if NORM:
                sum_gv += g * value  # g is 0 outside
        if NORM or BIAS:
            sum_g += g
        tl.store(inner + cells, g, mask=inside)
    if NORM or BIAS:
        partial += (batch * tl.num_programs(0) + split) * 3 * C + channels
        tl.store(partial, tl.sum(sum_g, 0), mask=is_channel)
        if NORM:
            tl.store(partial + C, tl.sum(sum_gv, 0), mask=is_channel)
        if HAS_X:
            tl.store(partial + 2 * C, tl.sum(sum_x, 0), mask=is_channel)


@jit
def _apply_gradient_kernel(
    x, statistics, grad_x, inner, sums, grad_input, C, positions,
    HAS_X: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of the norm, scale * (g - mean of g - v * mean of g v) with g = `inner`, plus grad_x."""
    batch = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channels < C
    mean, scale = _shift_and_scale(statistics, x, batch, channels, C, True, False)
    mean_g = tl.load(sums + batch * 3 * C + channels, mask=is_channel, other=0.0) / positions
    mean_gv = tl.load(sums + (batch * 3 + 1) * C + channels, mask=is_channel, other=0.0) / positions
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    cells = batch * positions * C + p[:, None] * C + channels[None, :]
    inside = (p < positions)[:, None] & is_channel[None, :]
    value = (tl.load(x + cells, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
    g = tl.load(inner + cells, mask=inside, other=0.0).to(tl.float32)
    result = scale[None, :] * (g - mean_g[None, :] - value * mean_gv[None, :])
    if HAS_X:
        result += tl.load(grad_x + cells, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad_input + cells, result, mask=inside)
