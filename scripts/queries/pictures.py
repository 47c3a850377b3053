"""The colours and scales of pictures of queries, which the page and the figures share.

Shapes: H x W the image, h x w the feature map.
"""

from __future__ import annotations

import numpy as np

from scripts.queries.view import QueryView

# Colour maps with perceptually even steps, by nine anchors (viridis and magma): dark is low, bright is high.
_VIRIDIS = "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725"
_MAGMA = "000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf"
RAMPS = {
    name: np.float32([list(bytes.fromhex(anchor)) for anchor in anchors.split()])
    for name, anchors in {"entropy": _VIRIDIS, "attention": _MAGMA}.items()
}
CHOSEN, RANDOM, CURRENT = (255, 209, 64), (86, 180, 233), (255, 255, 255)  # colours of markers
FLOOR = 1e-5  # smaller attention weights are drawn as this one


def colour(values: np.ndarray, ramp: str) -> np.ndarray:
    """Values (...) in [0, 1] as colours (..., 3) float32 in [0, 255]; `ramp` is a key of RAMPS."""
    anchors = RAMPS[ramp]
    at = np.clip(values, 0, 1)[..., None] * (len(anchors) - 1)
    low = np.clip(np.floor(at).astype(int)[..., 0], 0, len(anchors) - 2)
    return anchors[low] + (at - low[..., None]) * (anchors[low + 1] - anchors[low])


def entropy_range(log_entropy: np.ndarray) -> tuple[float, float]:
    """The range of log H that the colours span: the 2nd to the 98th percentile, never empty."""
    finite = log_entropy[np.isfinite(log_entropy)]
    low, high = np.percentile(finite, (2, 98)) if finite.size else (0.0, 0.0)
    return float(low), float(max(high, low + 1e-3))


def entropy_level(log_entropy: np.ndarray) -> np.ndarray:
    """log H on the linear scale that is drawn: the upper end of `entropy_range` is 0, its lower end 1."""
    low, high = entropy_range(log_entropy)
    return (high - np.nan_to_num(log_entropy, neginf=low)) / (high - low)


def attention_level(weights: np.ndarray) -> np.ndarray:
    """Attention weights on the logarithmic scale that is drawn: FLOOR is 0, 1 is 1."""
    return 1 - np.log10(np.clip(weights, FLOOR, 1)) / np.log10(FLOOR)


def score_level(scores: np.ndarray) -> np.ndarray:
    """Dot products (..., M) on the linear scale that is drawn: the least of a row is 0, its greatest 1."""
    low, high = scores.min(-1, keepdims=True), scores.max(-1, keepdims=True)
    return (scores - low) / np.maximum(high - low, 1e-12)


def faded(image: np.ndarray, grey: float = 0.5, light: float = 0.72) -> np.ndarray:
    """A photograph (H, W, 3) uint8 as a background: greyed by `grey` in [0, 1], darkened to `light`."""
    mean = image.astype(np.float32).mean(2, keepdims=True)
    return ((image + grey * (mean - image)) * light).astype(np.uint8)


def entropy_picture(view: QueryView, image: np.ndarray) -> np.ndarray:
    """log H in colour, the least brightest, over the grey photograph (H, W, 3): (H, W, 3) uint8."""
    level = _over(entropy_level(view.log_entropy), view, image, smooth=True)
    return (0.8 * colour(level, "entropy") + 0.2 * faded(image, 1, 1)).clip(0, 255).astype(np.uint8)


def heat_picture(view: QueryView, level: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Levels (h, w) in [0, 1] as heat over the dark grey photograph (H, W, 3), opaque where hot: uint8."""
    level = _over(level, view, image, smooth=False)
    cover = np.clip(1.6 * level, 0, 1)[..., None]
    heat = cover * colour(level, "attention") + (1 - cover) * faded(image, 1, 0.45)
    return heat.clip(0, 255).astype(np.uint8)


def _over(level: np.ndarray, view: QueryView, image: np.ndarray, smooth: bool) -> np.ndarray:
    """Levels (h, w) over the photograph (H, W), without the padding that the encoder saw."""
    return view.over_image(level, smooth)[: image.shape[0], : image.shape[1]]
