"""The loss curves of a run as one SVG file, in light or dark colours as the reader's system.

Written by hand in a few milliseconds; importing and calling matplotlib takes most of a second.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT, PER_ROW = 400, 230, 3  # of a panel in pixels; panels side by side
LEFT, RIGHT, TOP, BOTTOM = 46, WIDTH - 14, 34, HEIGHT - 38  # the axes in it
MOST_POINTS = 1000  # of a curve; more are averaged
SMOOTHING = 0.02  # half the window of the running mean, as a part of the curve

STYLE = """
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#5b6470}
.title{font-size:14px;font-weight:600;fill:#1c2128}
.grid{stroke:#e3e7ec}.axis{stroke:#aab2bd}
.curve{fill:none;stroke:#0072b2;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.raw{stroke-width:1;opacity:.3}
@media(prefers-color-scheme:dark){
text{fill:#9aa4b1}.title{fill:#e6eaf0}.grid{stroke:#2a3039}.axis{stroke:#4b5563}.curve{stroke:#56b4e9}
}"""


def draw_losses(curves: Mapping[str, Sequence[float]]) -> str:
    """The SVG document: a panel for each loss, a smooth curve over the faint raw one, x in epochs.

    curves: the finite values of each loss, as epoch, value, epoch, value, ...
    """
    width, height = WIDTH * PER_ROW, HEIGHT * math.ceil(len(curves) / PER_ROW)
    last = max((curve[-2] for curve in curves.values()), default=0.0)
    panels = []
    for index, (name, curve) in enumerate(curves.items()):
        x, y = index % PER_ROW * WIDTH, index // PER_ROW * HEIGHT
        epochs, values = thinned(np.reshape(curve, (-1, 2))).T
        panels.append(f'<g transform="translate({x},{y})">{_panel(name, epochs, values, last)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img"><title>Loss curves</title><style>{STYLE}</style>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )


def thinned(points: np.ndarray) -> np.ndarray:
    """(n, 2) -> (at most MOST_POINTS, 2): means of neighbours."""
    starts = np.arange(0, len(points), -(-len(points) // MOST_POINTS))
    return np.add.reduceat(points, starts) / np.diff(starts, append=len(points))[:, None]


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean: (n,) -> (n,). Its window begins narrow, so that the first, steep fall keeps its shape."""
    at = np.arange(len(values))
    reach = np.minimum(at // 4, math.ceil(SMOOTHING * len(values)))
    first, last = at - reach, np.minimum(at + reach, len(values) - 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[last + 1] - sums[first]) / (last + 1 - first)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers in [low, high], at most `most` + 1, in steps of 1, 2 or 5 times a power of ten."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def _panel(name: str, epochs: np.ndarray, values: np.ndarray, last: float) -> str:
    """The axes and the curve of one loss; `last` is the right end of the x axis in epochs."""
    smoothed = smooth(values)
    # the smooth curve whole, and the raw one without its rare spikes
    low, high = np.percentile(values, (1, 99))
    low, high = min(low, smoothed.min()), max(high, smoothed.max())
    if 0 < low < 0.4 * high:  # near enough to zero to start there
        low = 0.0
    margin = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - margin * (low != 0), high + margin
    xs = LEFT + (RIGHT - LEFT) * epochs / last

    def to_y(values):
        return BOTTOM - (BOTTOM - TOP) * (np.clip(values, low, high) - low) / (high - low)

    def path(values: np.ndarray, kind: str) -> str:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, to_y(values), strict=True))
        return f'<path class="curve {kind}" d="M{points} h.1"/>'  # h.1: a lone point would not show

    parts = [_text(LEFT, 18, escape(name), "start", "title"), _text(RIGHT, 18, f"{smoothed[-1]:.3f}", "end")]
    for tick in nice_ticks(low, high, 5):
        y = to_y(tick)
        parts.append(f'<path class="grid" d="M{LEFT},{y:.1f}H{RIGHT}"/>')
        parts.append(_text(LEFT - 7, y + 4, f"{tick:g}", "end"))
    for tick in nice_ticks(0, last, 6):
        parts.append(_text(LEFT + (RIGHT - LEFT) * tick / last, BOTTOM + 18, f"{tick:g}", "middle"))
    parts.append(_text((LEFT + RIGHT) / 2, BOTTOM + 34, "epochs", "middle"))
    parts.append(f'<path class="axis" d="M{LEFT},{BOTTOM}H{RIGHT}"/>')
    return "".join([*parts, path(values, "raw"), path(smoothed, "")])


def _text(x: float, y: float, markup: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{markup}</text>'
