"""One HTML file to look through the chosen queries of an image: no server, no other file, no network.

`page.html` is the template; pictures and rows are put into it. Rows are quantised to one byte per entry and
deflated, and the browser inflates those of the view on screen.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.queries.view import QueryView
from util.pages import printable

TEMPLATE = Path(__file__).with_suffix(".html")
FLOOR = 1e-5  # smaller attention weights are drawn as this one


def write_page(
    views: Sequence[QueryView], source: np.ndarray, target: np.ndarray, path: str | Path, title: str
) -> None:
    """Write the page of a photograph and its translation, (H, W, 3) uint8 each.

    Args:
        views: each layer in each mode.
        title: may hold bytes that are not UTF-8.
    """
    data = {
        "source": _png(source),
        "target": _png(target),
        "attentionRange": [f"{FLOOR:.5f}", "1"],
        "views": [_view(view) for view in views],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    # In one pass, so that a title cannot hold the other placeholder.
    parts = {"title": html.escape(printable(title)), "data": text}
    page = re.sub(r"{{(title|data)}}", lambda match: parts[match[1]], TEMPLATE.read_text(encoding="utf-8"))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page, encoding="utf-8")


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


def _view(view: QueryView) -> dict:
    log_entropy = np.nan_to_num(view.log_entropy.flat[view.indices])
    rows = [view.row_map(rank) for rank in range(len(view.indices))]
    return {
        "layer": view.layer,
        "mode": view.mode,
        "window": view.window,
        "grid": view.grid,
        "stride": [stride for stride, _ in view.geometry],
        "border": [border for _, border in view.geometry],
        "chosen": view.pixels(view.indices).tolist(),
        "random": view.pixels(view.random).tolist(),
        "logEntropy": [f"{value:.2f}" for value in log_entropy],
        "largest": [f"{value:.2g}" for value in view.attention.max(1)],
        "entropyRange": [f"{value:.2f}" for value in entropy_range(view.log_entropy)],
        "entropy": _packed(entropy_level(view.log_entropy)),
        "attention": _packed(attention_level(np.stack(rows))),
        "scores": _packed(score_level(view.scores)),
    }


def _packed(levels: np.ndarray) -> str:
    """Levels in [0, 1] as integers from 0 to 255, one byte each, deflated (zlib), in base64."""
    whole = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
    return base64.b64encode(zlib.compress(whole.tobytes(), 9)).decode("ascii")


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
