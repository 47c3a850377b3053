"""Query-selected attention (Hu et al., "QS-Attn", CVPR 2022, sec. 3): which patches to contrast, and how.

Features f_1 ... f_L of the source image at one layer attend to each other, without projection and without
scaling:

    a_ij = softmax_j(f_i . f_j)           over all positions ("global") or the k x k window around i ("local")
    H_i  = - sum_j a_ij log a_ij          the entropy of row i: small where attention is concentrated
    A_qs = the N rows of least H          select_queries, on the source image only
    out  = A_qs F                         route_values, for the source and for its translation alike

A mode is an entry of `MODES`: what ranks the positions, and what routes the chosen ones. Rows are ranked by
log H, since unscaled rows saturate until H itself rounds to zero for most of them (`_rows_log_entropy`).
Selection runs without gradient; only the N chosen rows are computed again with it, so that the loss reaches
the source's encoder through A_qs. The L x L matrix is never held: memory is O(L * block). Results are
float32, or float64 where that is torch's default type.

Shapes: B images, C channels, L = H*W positions, N queries, M keys of a query (L, or k*k in a window).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.layers import HALVES, full
from models.speed import qs_kernels

# Scores held at a time while entropies are streamed over blocks of queries: 4 MB stay in a processor's cache.
BLOCK_ELEMENTS = 2**20


@dataclass
class QuerySelection:
    """What passes from the source image to its translation."""

    indices: Tensor  # (B, N) int64, the chosen positions by ascending entropy
    attention: Tensor  # (B, N, M), their rows, each of sum 1; carries gradient into the source's features
    window: int | None = None  # k where the keys are the k*k window around each query; None: all positions

    def route(self, features: Tensor) -> Tensor:
        """Features (B, C, H, W) of the source or its translation through the chosen rows: (B, N, C).

        For features in half precision the product is in half precision, with the attention rounded to it.
        """
        features = _half_or_default(features)
        attention = self.attention.to(features.dtype)
        with torch.autocast(features.device.type, enabled=False):
            if self.window is None:
                routed = attention @ features.flatten(2).transpose(1, 2)  # (B, N, L) (B, L, C)
            else:
                values = _windows(features, self.indices, self.window)  # (B, N, M, C)
                routed = torch.einsum("bnm,bnmc->bnc", attention, values)
        return full(routed)


def route_values(features: Tensor, selection: QuerySelection) -> Tensor:
    """Features (B, C, H, W) through the chosen rows: A_qs F, (B, N, C) (paper, sec. 3.3)."""
    return selection.route(features)


def select_queries(features: Tensor, mode: str, num_queries: int, window: int = 7) -> QuerySelection:
    """Choose the `num_queries` positions of least attention entropy in each source image (paper, sec. 3.2).

    `features` (B, C, H, W) are the source image's; `mode` is an entry of `MODES` ("local_global" chooses by
    local entropy and routes by global attention); `window` is k, odd, of the local modes. All positions are
    chosen where they are fewer than `num_queries`.
    """
    rule = rule_of(mode, window)
    ranks = log_entropy(features, mode, window)
    # stable: ties go to the lower index on every device
    indices = torch.sort(ranks, dim=1, stable=True).indices[:, :num_queries]
    with torch.autocast(features.device.type, enabled=False):
        return rule.attend(_half_or_default(features), indices, window)


def log_entropy(features: Tensor, mode: str, window: int = 7) -> Tensor:
    """log H of every attention row of features (B, C, H, W): (B, H*W) float32, in (-inf, log log M].

    `mode` is an entry of `MODES`. Padded positions of a window (`window` is k, odd) have zero keys.
    """
    rule = rule_of(mode, window)
    with torch.autocast(features.device.type, enabled=False):
        return rule.rank(_half_or_default(features.detach()), window)


def global_log_entropy(features: Tensor, window: int) -> Tensor:
    """log H over all positions, in blocks of rows; by a Triton kernel where that works."""
    if (ranks := qs_kernels.log_entropy(qs_kernels.rank_globally, features)) is not None:
        return ranks
    f = full(features).flatten(2).transpose(1, 2).contiguous()  # (B, L, C)
    length = f.shape[1]
    block = max(1, BLOCK_ELEMENTS // length)
    rows = [_rows_log_entropy(queries @ image.T) for image in f for queries in image.split(block)]
    return torch.cat(rows).view(len(f), length)


def local_log_entropy(features: Tensor, window: int) -> Tensor:
    """log H over the zero-padded window around each position; by a Triton kernel where that works."""
    if (ranks := qs_kernels.log_entropy(qs_kernels.rank_locally, features, window)) is not None:
        return ranks
    features = full(features)
    b, _, h, w = features.shape
    reach = window // 2
    scores = features.new_zeros(b, h, w, window, window)  # zero is the score of a padded key
    # f_i . f_j serves query i with key j and query j with key i: half of the offsets are enough
    for dy in range(reach + 1):
        for dx in range(-reach if dy else 0, reach + 1):
            if dy >= h or abs(dx) >= w:
                continue
            x0, x1 = max(0, -dx), min(w, w - dx)
            here = (slice(0, h - dy), slice(x0, x1))
            there = (slice(dy, h), slice(x0 + dx, x1 + dx))
            dots = (features[(..., *here)] * features[(..., *there)]).sum(1)
            scores[(slice(None), *here, reach + dy, reach + dx)] = dots
            scores[(slice(None), *there, reach - dy, reach - dx)] = dots
    return _rows_log_entropy(scores.view(b, h * w, window * window))


def _rows_log_entropy(scores: Tensor) -> Tensor:
    """log of the entropy of softmax(scores) over the last axis, exact where it underflows; spoils `scores`.

    With m the top score, g_j = s_j - m, and sums over all keys but the top one,

        r = sum e^{g_j}        t = sum e^{g_j} (-g_j)        H = log1p(r) + t / (1 + r)

    has non-negative terms only. Factoring out e^{g2} of the second-largest score, r = e^{g2} r' and
    t = e^{g2} t' with r' >= 1, gives log H = g2 + log( log1p(r) / e^{g2} + t' / (1 + r) ), in which nothing
    underflows.
    """
    if scores.shape[-1] == 1:
        return torch.full_like(scores[..., 0], -torch.inf)
    top, where = scores.max(-1, keepdim=True)
    scores.scatter_(-1, where, -torch.inf)
    second = scores.amax(-1, keepdim=True)
    # e^-87 is nothing beside the second score's e^0. Smaller results would be denormal in float32, for which
    # exp takes 100 times as long on a CPU; and 0 * -inf would not be 0.
    below = scores.sub_(second).clamp_(min=-87.0)
    weights = below.exp()
    g2 = (second - top).squeeze(-1)
    r_scaled = weights.sum(-1)
    t_scaled = -(weights.mul_(below)).sum(-1) - g2 * r_scaled
    r = g2.exp() * r_scaled
    # log1p(r) / r tends to 1; it is not taken of denormals, which have too few digits for the quotient
    log1p_ratio = torch.where(r > 1e-30, r.log1p() / r, 1.0)
    return g2 + (r_scaled * log1p_ratio + t_scaled / (1 + r)).log()


def _half_or_default(features: Tensor) -> Tensor:
    """Features in half precision as they are, others in torch's default type, float32 or float64."""
    return features if features.dtype in HALVES else features.to(torch.get_default_dtype())


def global_attention(features: Tensor, indices: Tensor, window: int) -> QuerySelection:
    """Attention rows of the positions `indices` (B, N) over all positions: (B, N, L)."""
    if features.is_cuda and features.dtype in HALVES and hasattr(torch.ops.aten.bmm, "dtype"):  # torch 2.8
        vectors = features.flatten(2).transpose(1, 2)  # (B, L, C)
        queries = vectors.gather(1, indices[:, :, None].expand(-1, -1, vectors.shape[2]))  # (B, N, C)
        return QuerySelection(indices, _ExactScores.apply(queries, vectors).softmax(-1))
    keys = full(features).flatten(2)  # (B, C, L)
    queries = keys.gather(2, indices[:, None, :].expand(-1, keys.shape[1], -1))  # (B, C, N)
    return QuerySelection(indices, (queries.transpose(1, 2) @ keys).softmax(-1))


class _ExactScores(torch.autograd.Function):
    """Scores (B, N, M) float32 of queries (B, N, C) and keys (B, M, C) in half precision, on CUDA.

    Tensor cores sum the exact products in float32. Gradients are in the features' precision.
    """

    @staticmethod
    def forward(ctx, queries, keys):
        ctx.save_for_backward(queries, keys)
        return torch.bmm(queries, keys.transpose(1, 2), out_dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        queries, keys = ctx.saved_tensors
        grad = grad.to(keys.dtype)
        return grad @ keys, grad.transpose(1, 2) @ queries


def local_attention(features: Tensor, indices: Tensor, window: int) -> QuerySelection:
    """Attention rows of the positions `indices` (B, N) over the window around each: (B, N, k*k)."""
    keys = full(_windows(features, indices, window))  # (B, N, k*k, C)
    queries = keys[:, :, window * window // 2]
    return QuerySelection(indices, torch.einsum("bnc,bnmc->bnm", queries, keys).softmax(-1), window)


def _windows(features: Tensor, indices: Tensor, window: int) -> Tensor:
    """The zero-padded windows of features (B, C, H, W) around `indices` (B, N): (B, N, k*k, C)."""
    b, c, _, w = features.shape
    reach = window // 2
    padded = F.pad(features, (reach,) * 4)  # a window begins in it at its centre's own coordinates
    steps = torch.arange(window, device=features.device)
    offsets = (steps[:, None] * padded.shape[3] + steps).flatten()  # (k*k,)
    places = (indices // w * padded.shape[3] + indices % w)[:, :, None] + offsets  # (B, N, k*k)
    rows = padded.permute(0, 2, 3, 1).reshape(b, -1, c)  # (B, padded L, C)
    if features.is_cuda and not torch.are_deterministic_algorithms_enabled():
        return _Rows.apply(rows, places)  # the gradient of indexing would sort the indices
    return torch.stack([image[places_of_image] for image, places_of_image in zip(rows, places, strict=True)])


class _Rows(torch.autograd.Function):
    """Rows (B, L, C) at `places` (B, N, M): (B, N, M, C). Gradients add up in float32, atomically."""

    @staticmethod
    def forward(ctx, rows, places):
        index = places.flatten(1)[..., None].expand(-1, -1, rows.shape[2])  # (B, N M, C)
        ctx.save_for_backward(places)
        ctx.size, ctx.dtype = rows.shape, rows.dtype
        return rows.gather(1, index).view(*places.shape, rows.shape[2])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (places,) = ctx.saved_tensors
        grad = full(grad).flatten(1, 2)  # (B, N M, C)
        total = grad.new_zeros(ctx.size)
        return total.scatter_add_(1, places.flatten(1)[..., None].expand_as(grad), grad).to(ctx.dtype), None


class Rule(NamedTuple):
    """How a mode selects. Features (B, C, H, W) are float32, float64 or half precision; `window` is k."""

    # (features, window) -> (B, H*W), without gradient; the positions of least rank are chosen
    rank: Callable[[Tensor, int], Tensor]
    # (features, indices (B, N), window) -> the selection of these positions
    attend: Callable[[Tensor, Tensor, int], QuerySelection]


MODES: dict[str, Rule] = {
    "global": Rule(global_log_entropy, global_attention),
    "local": Rule(local_log_entropy, local_attention),
    "local_global": Rule(local_log_entropy, global_attention),
}


def rule_of(mode: str, window: int) -> Rule:
    """The rule of a mode; ValueError where the mode or the window is impossible."""
    if mode not in MODES:
        raise ValueError(f"QS-Attn mode is {mode!r}, but must be one of {', '.join(MODES)}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"QS-Attn window is {window}, but must be odd and positive")
    return MODES[mode]
