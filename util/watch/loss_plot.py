"""The loss curves of a run as one SVG file, in light or dark colours as the reader's system.

A run may log half a million times: `LossHistory` keeps at most a thousand points. Drawing takes a few
milliseconds, where importing and calling matplotlib takes most of a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from util.watch.loss_log import LossRecord

Row = tuple[float, dict[str, float]]  # (epochs done, {loss name: value}), finite values only

WIDTH, HEIGHT, PER_ROW = 400, 230, 3  # of a panel in pixels; panels side by side
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 38  # what surrounds the axes of a panel
SMOOTHING = 0.02  # half the window of the running mean, as a part of the curve

STYLE = """
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#5b6470}
.title{font-size:14px;font-weight:600;fill:#1c2128}
.grid{stroke:#e3e7ec}.axis{stroke:#aab2bd}
path{fill:none;stroke:#0072b2;stroke-linejoin:round;stroke-linecap:round}
.raw{stroke-width:1;opacity:.3}.smooth{stroke-width:2}
@media(prefers-color-scheme:dark){
text{fill:#9aa4b1}.title{fill:#e6eaf0}.grid{stroke:#2a3039}.axis{stroke:#4b5563}path{stroke:#56b4e9}
}"""


class LossHistory:
    """The losses of a run, thinned by averaging neighbours so that at most `capacity` rows stay."""

    def __init__(self, records: Iterable[LossRecord] = (), capacity: int = 1000):
        self.capacity = capacity
        self._rows: list[Row] = []
        self._group: list[Row] = []  # the newest records, fewer than make a row
        self._records_per_row = 1
        for record in records:
            self.add(record)

    def add(self, record: LossRecord) -> None:
        """Add one record, without the values that are not finite."""
        finite = {name: v for name, v in record.losses.items() if v is not None and math.isfinite(v)}
        self._group.append((record.epochs_done, finite))
        if len(self._group) == self._records_per_row:
            self._rows.append(_mean_row(self._group))
            self._group = []
        if len(self._rows) == self.capacity:
            self._rows = [_mean_row(self._rows[i : i + 2]) for i in range(0, self.capacity, 2)]
            self._records_per_row *= 2

    def rows(self) -> list[Row]:
        """All rows up to the newest record."""
        return self._rows + ([_mean_row(self._group)] if self._group else [])


def _mean_row(rows: Sequence[Row]) -> Row:
    names = dict.fromkeys(name for _, losses in rows for name in losses)  # a set that keeps the order
    means = {name: float(np.mean([losses[name] for _, losses in rows if name in losses])) for name in names}
    return sum(x for x, _ in rows) / len(rows), means


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean: (n,) -> (n,). Its window begins narrow, so that the first, steep fall keeps its shape."""
    at = np.arange(len(values))
    reach = np.minimum(at // 4, math.ceil(SMOOTHING * len(values)))
    first, last = at - reach, np.minimum(at + reach, len(values) - 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[last + 1] - sums[first]) / (last + 1 - first)


def draw_losses(rows: Sequence[Row]) -> str:
    """The SVG document: a panel for each loss, a smooth curve over the faint raw one, x in epochs."""
    names = list(dict.fromkeys(name for _, losses in rows for name in losses))
    width = WIDTH * PER_ROW
    height = HEIGHT * max(1, math.ceil(len(names) / PER_ROW))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img"><title>Loss curves</title><style>{STYLE}</style>'
    ]
    if not names:
        parts.append(_text(width / 2, height / 2, "No losses logged yet", anchor="middle"))
    for index, name in enumerate(names):
        x, y = index % PER_ROW * WIDTH, index // PER_ROW * HEIGHT
        points = np.array([(epochs_done, losses[name]) for epochs_done, losses in rows if name in losses])
        parts += [f'<g transform="translate({x},{y})">', *_panel(name, *points.T, last=rows[-1][0]), "</g>"]
    return "\n".join(parts) + "\n</svg>\n"


def _panel(name: str, epochs: np.ndarray, values: np.ndarray, last: float) -> list[str]:
    """The axes and the curve of one loss; `last` is the right end of the x axis in epochs."""
    smoothed = smooth(values)
    # the smooth curve whole, and the raw one without its rare spikes
    low, high = np.percentile(values, (1, 99))
    low, high = min(low, smoothed.min()), max(high, smoothed.max())
    if 0 < low < 0.4 * high:  # near enough to zero to start there
        low = 0.0
    margin = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - margin * (low != 0), high + margin
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    def to_x(epochs):
        return left + (right - left) * epochs / last

    def to_y(values):
        return bottom - (bottom - top) * (np.clip(values, low, high) - low) / (high - low)

    parts = [
        _text(left, 18, escape(name), kind="title"),
        _text(right, 18, f"{smoothed[-1]:.3f}", anchor="end"),
    ]
    for tick in nice_ticks(low, high, 5):
        y = to_y(tick)
        parts += [_line(left, y, right, y, "grid"), _text(left - 7, y + 4, f"{tick:g}", anchor="end")]
    for tick in nice_ticks(0, last, 6):
        parts.append(_text(to_x(tick), bottom + 18, f"{tick:g}", anchor="middle"))
    parts += [_line(left, bottom, right, bottom, "axis")]
    parts += [_text((left + right) / 2, bottom + 34, "epochs", anchor="middle")]
    return [*parts, _path(to_x(epochs), to_y(values), "raw"), _path(to_x(epochs), to_y(smoothed), "smooth")]


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers in [low, high], at most `most` + 1, in steps of 1, 2 or 5 times a power of ten."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def _text(x: float, y: float, markup: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{markup}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _path(xs: np.ndarray, ys: np.ndarray, kind: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    dot = " h.1" if len(xs) == 1 else ""  # a lone point would not show
    return f'<path class="{kind}" d="M{points}{dot}"/>'
