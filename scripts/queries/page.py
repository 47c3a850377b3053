"""One HTML file in which a person looks through the chosen queries of an image: no server, no other file, no network.

The page is `query_page.html` with the pictures and the rows put into it. Rows are quantised to a byte an entry and deflated;
the browser inflates those of the view that is looked at. Colours and scales are those of `models.query_pictures.overview`.
"""

from __future__ import annotations

import base64
import html
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from models.query_pictures.overview import (
    CHOSEN,
    FLOOR,
    RAMPS,
    RANDOM,
    attention_level,
    entropy_range,
    score_level,
)
from models.query_pictures.view import QueryView, axis_geometry, pixel_centres

TEMPLATE = Path(__file__).with_suffix(".html")
SCORE_STEPS = 63  # a dot product is compared by eye: 64 levels, which deflate well


def write_page(
    views: Sequence[QueryView], source: np.ndarray, target: np.ndarray, path: str | Path, title: str
) -> None:
    """Write the page of an image.

    Args:
        views: every layer and mode to switch between, each layer in each mode.
        source, target: the photograph and its translation, (H, W, 3) uint8 each.
        title: names the image and the run.
    """
    data = {
        "title": title,
        "source": _png(source),
        "target": _png(target),
        "ramps": {name: anchors.astype(int).tolist() for name, anchors in RAMPS.items()},
        "markers": {"chosen": CHOSEN, "random": RANDOM},
        "floor": FLOOR,
        "scoreSteps": SCORE_STEPS,
        "views": [_view(view) for view in views],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace(
        "<", "\\u003c"
    )  # never ends the script element
    page = (
        TEMPLATE.read_text(encoding="utf-8")
        .replace("{{title}}", html.escape(title))
        .replace("{{data}}", text)
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page, encoding="utf-8")


def _view(view: QueryView) -> dict:
    low, high = entropy_range(view.log_entropy)
    level = (high - np.nan_to_num(view.log_entropy, neginf=low)) / (high - low)
    axes = [axis_geometry(cells, pixels) for cells, pixels in zip(view.grid, view.image_shape, strict=True)]
    return {
        "layer": view.layer,
        "mode": view.mode,
        "window": view.window,
        "grid": view.grid,
        "stride": [stride for stride, _ in axes],
        "border": [border for _, border in axes],
        "positions": view.indices.tolist(),
        "chosen": pixel_centres(view.indices, view.grid, view.image_shape).tolist(),
        "random": pixel_centres(view.random, view.grid, view.image_shape).tolist(),
        "logEntropy": [
            round(float(value), 3) for value in np.nan_to_num(view.log_entropy.flat[view.indices])
        ],
        "entropyRange": [low, high],
        "entropy": _packed(level, 255),
        "attention": _packed(attention_level(view.attention), 255),
        "scores": _packed(score_level(view.scores), SCORE_STEPS),
    }


def _packed(levels: np.ndarray, steps: int) -> str:
    """Levels in [0, 1] as whole numbers up to `steps`, a byte each, deflated (zlib), in base64."""
    whole = np.rint(np.clip(levels, 0, 1) * steps).astype(np.uint8)
    return base64.b64encode(zlib.compress(whole.tobytes(), 9)).decode("ascii")


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
