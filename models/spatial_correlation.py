"""The spatially-correlative loss of FSeSim and LSeSim (Zheng, Cham and Cai, CVPR 2021, arXiv 2104.00854).

An image and its translation should agree in structure, not in appearance. Structure is a self-similarity map:
how a feature correlates with the features around it. With f the features of one layer, centred per channel
over the image,

    S_ij = tanh(f_i . f_j / (10 C))          or cos(f_i, f_j) with `use_norm`

for a few random queries i, and for j in the window of keys around i. The loss compares the maps of the image
and of its translation at the same queries and keys, per query, where the translation's similarities are
largest:

    loss = mean_i (1 - cos(S_i(source), S_i(translation)))         up to the criterion, see `correlation_loss`

FSeSim takes fixed features (VGG-16). LSeSim passes them through 1 x 1 convolutions first, which learn by
contrast: a map should be closer to that of another view of the same image than to any other map
(`contrastive_loss`).

Shapes: B images, C channels, L = H*W positions (row * W + column), N queries, M keys of a query (P*P, or L).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import full

SCALE = 10.0  # of a correlation inside the tanh
MODES = ("cos", "l1")
KEPT = 4  # the loss compares the largest quarter of each map
MIN_WINDOW = LEAST_MAP = 2  # per side: fewer than four keys have no quarter
MIN_HIDDEN, REDUCTION = 32, 4  # channels of the learned convolutions: C / REDUCTION, but at least MIN_HIDDEN


class SelfSimilarity(nn.Module):
    """Self-similarity maps of the features of several layers, fixed or behind learned 1 x 1 convolutions.

    `channels` are C of each layer, for the learned convolutions `conv_0`, `conv_1`, ... (LSeSim); without
    them features are fixed (FSeSim). `window` and `use_norm` as of `self_similarity`.
    """

    def __init__(self, channels: Sequence[int] = (), window: int = 64, use_norm: bool = False):
        super().__init__()
        self.window, self.use_norm, self.learned = window, use_norm, bool(channels)
        for number, c in enumerate(channels):
            hidden = max(MIN_HIDDEN, c // REDUCTION)
            layers = nn.Sequential(nn.Conv2d(c, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, hidden, 1))
            self.add_module(f"conv_{number}", layers)

    def forward(self, number: int, features: Tensor, queries: Tensor | None) -> Tensor:
        """Maps (B, N, M) of features (B, C, H, W) of the `number`-th layer; see `self_similarity`."""
        if self.learned:
            features = getattr(self, f"conv_{number}")(features)
        return self_similarity(features, queries, self.window, self.use_norm)


def self_similarity(features: Tensor, queries: Tensor | None, window: int, use_norm: bool = False) -> Tensor:
    """Similarity of each query's feature to those of its keys: (B, N, M), in [-1, 1], at least float32.

    Args:
        features: (B, C, H, W), at least four positions.
        queries: (N,) int64, row * W + column, the same in all images; None for all L positions in order.
        window: P. The keys are the P x P square that begins P // 2 above and left of the query, moved inside
            the map. They are all L positions where P reaches H or W, or where `queries` is None.
        use_norm: cosine similarity; else tanh(f_i . f_j / (10 C)).
    """
    b, c, h, w = features.shape
    features = full(features)
    features = (features - features.mean((2, 3), keepdim=True)).flatten(2)  # (B, C, L)
    features = F.normalize(features, dim=1) if use_norm else features / c**0.5
    chosen = features if queries is None else features.index_select(2, queries)  # (B, C, N)
    # All L scores per query and then the window's: N x L numbers, where gathered keys would be N x M x C.
    scores = full(chosen.transpose(1, 2) @ features)  # (B, N, L)
    if queries is not None and window < min(h, w):
        scores = scores.gather(2, window_positions(queries, h, w, window).expand(b, -1, -1))  # (B, N, M)
    return scores if use_norm else torch.tanh(scores / SCALE)


def window_positions(queries: Tensor, height: int, width: int, window: int) -> Tensor:
    """Positions of the keys of each query (N,), row by row: (N, P*P) int64. P is less than both sides."""
    top = (queries // width - window // 2).clamp(0, height - window)
    left = (queries % width - window // 2).clamp(0, width - window)
    steps = torch.arange(window, device=queries.device)
    rows = top[:, None, None] + steps[:, None]  # (N, P, 1)
    columns = left[:, None, None] + steps  # (N, 1, P)
    return (rows * width + columns).flatten(1)  # (N, P*P)


def correlation_loss(source: Tensor, target: Tensor, mode: str = "cos", use_norm: bool = False) -> Tensor:
    """Distance of the self-similarity maps (B, N, M) of images and of their translations, a scalar.

    Only keys whose similarity in the translation is among its M // 4 + 1 largest count; both maps are zero
    elsewhere. "cos" compares each query's cosine similarity of the two maps with 1; "l1" compares the maps
    themselves, times M / (M // 4). The criterion is the L1 distance for normalised features, else smooth L1.
    """
    keys = target.shape[-1]
    threshold = target.detach().topk(keys // KEPT + 1).values[..., -1:]  # (B, N, 1)
    kept = target >= threshold
    source, target = source * kept, target * kept
    criterion = F.l1_loss if use_norm else F.smooth_l1_loss
    if mode == "l1":
        factor = keys / (keys // KEPT)
        return criterion(target * factor, source * factor)
    agreement = F.cosine_similarity(source, target, dim=-1)  # (B, N)
    return criterion(agreement, torch.ones_like(agreement))


def contrastive_loss(source: Tensor, target: Tensor, other: Tensor, temperature: float = 0.07) -> Tensor:
    """InfoNCE of self-similarity maps (B, N, M), a scalar: source query i belongs to target query i.

    Among its candidates are also all queries of the other image, and those of the other image seen from
    target query i; all within the same image of the batch.
    """
    source, target, other = (F.normalize(maps, dim=-1) for maps in (source, target, other))
    b, n, _ = source.shape
    # 1 / T would amplify the rounding of half precision
    with torch.autocast(source.device.type, enabled=False):
        pairs = ((source, target), (source, other), (target, other))
        logits = torch.cat([left @ right.transpose(1, 2) for left, right in pairs], 2)  # (B, N, 3 N)
    own = torch.arange(n, device=source.device).repeat(b)
    return F.cross_entropy(logits.flatten(0, 1) / temperature, own)
