"""Triton kernels for the log-entropy of attention rows, without the attention matrix (`models/qs_attn.py`).

A row's scores s_j = f_i . f_j are streamed; its state is four numbers over the keys seen so far:

    top      m   the largest score; the key that has it stands apart, all other keys are "the rest"
    second   m2  the largest score of the rest (equal to m when the top is tied)
    total    S = sum over the rest of e^{s_j - m2}               in [1, L - 1]
    excess   U = sum over the rest of e^{s_j - m2} (m2 - s_j)    >= 0

With g_j = s_j - m and g2 = m2 - m,

    r = sum e^{g_j} = e^{g2} S,    t = sum e^{g_j} (-g_j) = e^{g2} (U - g2 S),
    log H = log( log1p(r) + t / (1 + r) ) = g2 + log( S log1p(r)/r + (U - g2 S) / (1 + r) ).

All terms are non-negative and nothing cancels or underflows: where e^{g2} becomes 0, the bracket is above 0.

Two states merge exactly, in any order. The larger top stays apart and the other, the loser, joins the rest.
The new second is the largest of the loser and both seconds, and each rest is rescaled from its own second to
the new one, over a distance d >= 0:

    sum e^{-d} e^{..} = e^{-d} S,    sum e^{-d} e^{..} (d + ..) = e^{-d} (U + d S).

Everything is float32. Products of float32 features must be float32-accurate, because scores are in the
thousands and their absolute differences count: where tensor cores have tf32, by tf32x3 (f = hi + lo, both
tf32: hi.hi + hi.lo + lo.hi, sums of 32 channels in float32; it drops less than 2^-21 of a product), else by
ieee fused multiply-adds. Products of bfloat16 or float16 features are exact in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.speed.triton_support import jit, tl, trials, triton, works

if triton is not None:
    ABSENT = tl.constexpr(-1e30)  # the score of no key: finite, so that differences stay numbers

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PRECISIONS = ("tf32x3", "ieee")


def log_entropy(rank: Callable, features: Tensor, *window: int) -> Tensor | None:
    """The log H that `rank`, `rank_globally` or `rank_locally`, gives; None where the kernels do not run.

    The first call for a shape compiles, so make one before a CUDA graph is captured.
    """
    if not works(features.device) or features.dtype not in DTYPES:
        return None
    variant = (features.dtype, features.device, features.shape[1:], features.stride(), *window)
    allowed = trials.allows(rank.__name__, variant, lambda: rank(features, *window))
    return rank(features, *window) if allowed else None


def rank_globally(features: Tensor, input_precision: str | None = None) -> Tensor:
    """log H of every attention row of features (B, C, H, W): (B, H*W) float32; -inf where H*W is 1.

    Products of float32 by one of PRECISIONS, or the device's best. Memory is O(L); features are not copied.
    """
    if not features.is_cuda:
        features = features.float()  # the interpreter's dot takes bfloat16 for integers
    vectors = features.flatten(2)  # (B, C, L), a view in both memory formats
    B, C, L = vectors.shape
    config = _global_config(features, input_precision)
    # One image has few query blocks, so the keys are split too: about 500 programs fill the largest GPUs.
    # This depends on L alone, so that an image's result does not depend on its batch.
    query_blocks, key_blocks = triton.cdiv(L, config["BLOCK_Q"]), triton.cdiv(L, config["BLOCK_K"])
    blocks_per_split = triton.cdiv(key_blocks, triton.cdiv(512, query_blocks))
    splits = triton.cdiv(key_blocks, blocks_per_split)
    states = features.new_empty((B, splits, 4, L), dtype=torch.float32)
    log_entropy = features.new_empty((B, L), dtype=torch.float32)
    with torch.cuda.device_of(features):
        _global_states[(query_blocks, splits, B)](
            vectors, states, L, *vectors.stride(), C=C, KEY_BLOCKS=blocks_per_split, **config
        )
        _merge_splits[(triton.cdiv(L, 128), B)](states, log_entropy, L, SPLITS=splits, BLOCK_Q=128)
    return log_entropy


def rank_locally(features: Tensor, window: int) -> Tensor:
    """The same over the `window` x `window` positions around each; those outside the image are zeros."""
    B, C, H, W = features.shape
    vectors = features.flatten(2)  # (B, C, L), a view in both memory formats
    log_entropy = features.new_empty((B, H * W), dtype=torch.float32)
    # 4096 numbers a tile are 32 registers a thread for the queries and as many for the keys
    block_c = triton.next_power_of_2(C)
    block_q = min(128, max(1, 4096 // block_c))
    blocks = {"BLOCK_Q": block_q, "BLOCK_C": block_c, "num_warps": 4}
    with torch.cuda.device_of(features):
        _local_log_entropy[(triton.cdiv(H * W, block_q), B)](
            vectors, log_entropy, C, H, W, *vectors.stride(), WINDOW=window, **blocks
        )
    return log_entropy


def _global_config(features: Tensor, input_precision: str | None) -> dict[str, int | str]:
    """Block shapes without register spills; those for bfloat16 were the fastest of 30 on an H200."""
    has_tf32 = features.is_cuda and not torch.version.hip
    major = torch.cuda.get_device_capability(features.device)[0] if has_tf32 else 0
    if input_precision is None:
        input_precision = "tf32x3" if major >= 8 else "ieee"
    blocks = {"BLOCK_Q": 128, "BLOCK_K": 64, "BLOCK_C": 16}
    if features.dtype != torch.float32 or input_precision == "tf32x3":  # on tensor cores
        blocks["BLOCK_C"] = 32
        if major in (9, 10):  # where accumulators spread over warp groups, or leave the registers
            blocks["BLOCK_K"] = 128 if features.dtype == torch.float32 else 256
    return {**blocks, "INPUT_PRECISION": input_precision, "num_warps": 8, "num_stages": 3}


@jit
def _no_keys(BLOCK_Q: tl.constexpr):
    absent, zero = tl.full((BLOCK_Q,), ABSENT, tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    return absent, absent, zero, zero


@jit
def _merge(top, second, total, excess, other_top, other_second, other_total, other_excess):
    loser = tl.minimum(top, other_top)
    new_second = tl.maximum(loser, tl.maximum(second, other_second))
    d, other_d, loser_d = new_second - second, new_second - other_second, new_second - loser
    weight, other_weight, loser_weight = tl.exp(-d), tl.exp(-other_d), tl.exp(-loser_d)
    new_total = weight * total + other_weight * other_total + loser_weight
    # weight * d first: a part that holds only absent keys has weight 0 and a huge distance
    new_excess = weight * excess + (weight * d) * total
    new_excess += other_weight * other_excess + (other_weight * other_d) * other_total
    new_excess += loser_weight * loser_d
    return tl.maximum(top, other_top), new_second, new_total, new_excess


@jit
def _state_of_block(scores):
    """The state of each row of scores (Q, K). Copies of the top beyond the first belong to the rest."""
    top = tl.max(scores, 1)
    is_top = scores == top[:, None]
    copies = tl.sum(is_top.to(tl.float32), 1)
    rest = tl.where(is_top, ABSENT, scores)
    second = tl.where(copies > 1, top, tl.max(rest, 1))
    distance = second[:, None] - rest
    weight = tl.exp(-distance)
    return top, second, tl.sum(weight, 1) + (copies - 1), tl.sum(weight * distance, 1)


@jit
def _log_entropy(top, second, total, excess):
    gap = second - top  # g2 <= 0
    r = tl.exp(gap) * total
    one_plus = 1 + r
    # log1p(r) / r by Kahan's device: the rounding of 1 + r divides out; below half an ulp of 1 the ratio is 1
    ratio = tl.where(one_plus == 1, 1.0, tl.log(one_plus) / tl.where(one_plus == 1, 1.0, one_plus - 1))
    log_entropy = gap + tl.log(total * ratio + (excess - gap * total) / one_plus)
    return tl.where(second > 0.5 * ABSENT, log_entropy, -float("inf"))  # a row with one key has entropy 0


@jit
def _global_states(
    features, states, L, stride_b, stride_c, stride_l,
    C: tl.constexpr, KEY_BLOCKS: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The state of BLOCK_Q queries over one split of the keys -> states (B, splits, 4, L).

    Loop bounds are constants: features come in few shapes, and Triton's interpreter up to 3.6 takes no others
    with NumPy from 2.4.
    """
    split, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    features += batch * stride_b
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    top, second, total, excess = _no_keys(BLOCK_Q)
    for block in range(KEY_BLOCKS):
        keys = (split * KEY_BLOCKS + block) * BLOCK_K + tl.arange(0, BLOCK_K)
        scores = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
        for first_channel in range(0, C, BLOCK_C):
            channels = first_channel + tl.arange(0, BLOCK_C)
            query = tl.load(
                features + queries[:, None] * stride_l + channels[None, :] * stride_c,
                mask=(queries < L)[:, None] & (channels < C)[None, :], other=0.0,
            )  # (Q, C)  # fmt: skip
            key = tl.load(
                features + keys[None, :] * stride_l + channels[:, None] * stride_c,
                mask=(keys < L)[None, :] & (channels < C)[:, None], other=0.0,
            )  # (C, K)  # fmt: skip
            scores = tl.dot(query, key, scores, input_precision=INPUT_PRECISION)
        scores = tl.where((keys < L)[None, :], scores, ABSENT)
        top_here, second_here, total_here, excess_here = _state_of_block(scores)
        top, second, total, excess = _merge(
            top, second, total, excess, top_here, second_here, total_here, excess_here
        )
    states += (batch * tl.num_programs(1) + split) * 4 * L + queries
    tl.store(states, top, mask=queries < L)
    tl.store(states + L, second, mask=queries < L)
    tl.store(states + 2 * L, total, mask=queries < L)
    tl.store(states + 3 * L, excess, mask=queries < L)


@jit
def _merge_splits(states, log_entropy, L, SPLITS: tl.constexpr, BLOCK_Q: tl.constexpr):
    """states (B, splits, 4, L) -> log_entropy (B, L)."""
    batch = tl.program_id(1).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    states += batch * SPLITS * 4 * L + queries
    top, second, total, excess = _no_keys(BLOCK_Q)
    for _ in range(SPLITS):
        split_top = tl.load(states, mask=queries < L, other=0.0)
        split_second = tl.load(states + L, mask=queries < L, other=0.0)
        split_total = tl.load(states + 2 * L, mask=queries < L, other=0.0)
        split_excess = tl.load(states + 3 * L, mask=queries < L, other=0.0)
        top, second, total, excess = _merge(
            top, second, total, excess, split_top, split_second, split_total, split_excess
        )
        states += 4 * L
    tl.store(log_entropy + batch * L + queries, _log_entropy(top, second, total, excess), mask=queries < L)


@jit
def _local_log_entropy(
    features, log_entropy, C, H, W, stride_b, stride_c, stride_l,
    WINDOW: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_Q queries with all their channels, against one position of the window after another."""
    batch = tl.program_id(1).to(tl.int64)
    features += batch * stride_b
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channels = tl.arange(0, BLOCK_C)
    y, x = queries // W, queries % W
    tile = features + queries[:, None] * stride_l + channels[None, :] * stride_c  # (Q, C)
    query = tl.load(tile, mask=(y < H)[:, None] & (channels < C)[None, :], other=0.0).to(tl.float32)
    top, second, total, excess = _no_keys(BLOCK_Q)
    for position in range(WINDOW * WINDOW):
        dy, dx = position // WINDOW - WINDOW // 2, position % WINDOW - WINDOW // 2
        inside = (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
        key = tl.load(
            tile + (dy * W + dx) * stride_l, mask=inside[:, None] & (channels < C)[None, :], other=0.0
        )  # a padded position is a key of zeros, and takes part
        score = tl.sum(query * key.to(tl.float32), 1)
        top, second, total, excess = _merge(top, second, total, excess, score, ABSENT, 0.0, 0.0)
    tl.store(log_entropy + batch * H * W + queries, _log_entropy(top, second, total, excess), mask=y < H)
