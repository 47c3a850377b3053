"""One HTML file to look through the chosen queries of an image: no server, no other file, no network.

`page.html` is the template; pictures and rows are put into it. Rows are quantised to one byte per entry and
deflated, and the browser inflates those of the view on screen. Colours and scales are those of
`scripts.queries.pictures`.
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

from scripts.queries import pictures
from scripts.queries.view import QueryView
from util.pages import printable

TEMPLATE = Path(__file__).with_suffix(".html")
SCORE_STEPS = 63  # 64 levels of dot products: enough for the eye, and they deflate well


def write_page(
    views: Sequence[QueryView], source: np.ndarray, target: np.ndarray, path: str | Path, title: str
) -> None:
    """Write the page of an image.

    Args:
        views: every layer and mode to switch between, each layer in each mode.
        source, target: the photograph and its translation, (H, W, 3) uint8 each.
        title: names the image and the run; may hold bytes that are not UTF-8.
    """
    data = {
        "source": _png(source),
        "target": _png(target),
        "ramps": {name: anchors.astype(int).tolist() for name, anchors in pictures.RAMPS.items()},
        "markers": {"chosen": pictures.CHOSEN, "random": pictures.RANDOM},
        "floor": pictures.FLOOR,
        "scoreSteps": SCORE_STEPS,
        "views": [_view(view) for view in views],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    # In one pass, so that a title cannot hold the other placeholder.
    parts = {"title": html.escape(printable(title)), "data": text}
    page = re.sub(r"{{(title|data)}}", lambda match: parts[match[1]], TEMPLATE.read_text(encoding="utf-8"))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page, encoding="utf-8")


def _view(view: QueryView) -> dict:
    log_entropy = np.nan_to_num(view.log_entropy.flat[view.indices])
    return {
        "layer": view.layer,
        "mode": view.mode,
        "window": view.window,
        "grid": view.grid,
        "stride": [stride for stride, _ in view.geometry],
        "border": [border for _, border in view.geometry],
        "positions": view.indices.tolist(),
        "chosen": view.pixels(view.indices).tolist(),
        "random": view.pixels(view.random).tolist(),
        "logEntropy": [round(float(value), 3) for value in log_entropy],
        "entropyRange": pictures.entropy_range(view.log_entropy),
        "entropy": _packed(pictures.entropy_level(view.log_entropy), 255),
        "attention": _packed(pictures.attention_level(view.attention), 255),
        "scores": _packed(pictures.score_level(view.scores), SCORE_STEPS),
    }


def _packed(levels: np.ndarray, steps: int) -> str:
    """Levels in [0, 1] as integers from 0 to `steps`, one byte each, deflated (zlib), in base64."""
    whole = np.rint(np.clip(levels, 0, 1) * steps).astype(np.uint8)
    return base64.b64encode(zlib.compress(whole.tobytes(), 9)).decode("ascii")


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
