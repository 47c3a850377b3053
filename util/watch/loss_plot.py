"""The loss curves of a run as one SVG file, in light or dark colours as the reader's system.

A run may log half a million times. `LossHistory` keeps at most a thousand points, each the mean of
consecutive records, so drawing costs the same few milliseconds at any time of a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from util.watch.loss_log import LossRecord

# The panels in order, and the names of their losses; a name goes to the first panel that matches.
PANELS = {
    "Contrastive": re.compile("NCE"),
    "Adversarial": re.compile("GAN|D$|D_|G_"),
    "Generator, total": re.compile("G$"),
    "Reconstruction": re.compile("cycle|idt|rec|L1"),
    "Other losses": re.compile(""),
}

Row = tuple[float, dict[str, float]]  # (epochs done, {loss name: value}), finite values only
Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # loss name -> (epochs done (n,), values (n,))

WIDTH, PER_ROW = 1200, 3  # of the drawing in pixels; panels side by side
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 52, 38  # what surrounds the axes of a panel
HEIGHT = 270  # of a panel
COLOURS = 6  # that STYLE defines
SMOOTHING = 0.02  # half the window that smooths a curve, as a part of the curve's length

STYLE = """
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#5b6470}
.title{font-size:14px;font-weight:600;fill:#1c2128}
.value{fill:#1c2128;font-variant-numeric:tabular-nums}
.grid{stroke:#e3e7ec}.axis{stroke:#aab2bd}
path{fill:none;stroke-linejoin:round;stroke-linecap:round}
.raw{stroke-width:1;opacity:.25}.smooth{stroke-width:2}
.c0{stroke:#0072b2}.c1{stroke:#d55e00}.c2{stroke:#009e73}.c3{stroke:#cc79a7}.c4{stroke:#b8860b}.c5{stroke:#6f5bb5}
.k0{fill:#0072b2}.k1{fill:#d55e00}.k2{fill:#009e73}.k3{fill:#cc79a7}.k4{fill:#b8860b}.k5{fill:#6f5bb5}
@media(prefers-color-scheme:dark){
text{fill:#9aa4b1}.title,.value{fill:#e6eaf0}.grid{stroke:#2a3039}.axis{stroke:#4b5563}
.c0{stroke:#56b4e9}.c1{stroke:#ff8b3d}.c2{stroke:#2fc99a}.c3{stroke:#e79ac6}.c4{stroke:#e6c34a}.c5{stroke:#a796e8}
.k0{fill:#56b4e9}.k1{fill:#ff8b3d}.k2{fill:#2fc99a}.k3{fill:#e79ac6}.k4{fill:#e6c34a}.k5{fill:#a796e8}
}"""


class LossHistory:
    """The losses of a run, thinned by averaging neighbours so that at most `capacity` rows stay."""

    def __init__(self, records: Iterable[LossRecord] = (), capacity: int = 1000):
        self.capacity = capacity
        self._rows: list[Row] = []
        self._group: list[Row] = []  # the newest records, fewer than make a row
        self._records_per_row = 1
        for record in records:
            self.add(record.epochs_done, record.losses)

    def add(self, epochs_done: float, losses: Mapping[str, float | None]) -> None:
        """Add one record, without the values that are None or not finite."""
        finite = {name: float(v) for name, v in losses.items() if v is not None and math.isfinite(v)}
        self._group.append((epochs_done, finite))
        if len(self._group) == self._records_per_row:
            self._rows.append(_mean_row(self._group))
            self._group = []
        if len(self._rows) == self.capacity:
            self._rows = [_mean_row(self._rows[i : i + 2]) for i in range(0, self.capacity, 2)]
            self._records_per_row *= 2

    def rows(self) -> list[Row]:
        """A copy of all rows up to the newest record."""
        return self._rows + ([_mean_row(self._group)] if self._group else [])


def _mean_row(rows: Sequence[Row]) -> Row:
    names = dict.fromkeys(name for _, losses in rows for name in losses)  # a set that keeps the order
    means = {name: float(np.mean([losses[name] for _, losses in rows if name in losses])) for name in names}
    return sum(x for x, _ in rows) / len(rows), means


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean, twice: (n,) -> (n,).

    At the start the window is narrow on both sides, so that the first, steep fall keeps its shape; at the end
    it only shrinks on the right, so that the newest value does not jump.
    """
    n = len(values)
    reach = round(min(max(SMOOTHING * n, 5), n / 8))
    at = np.arange(n)
    reach = np.minimum(reach, at // 4)
    first, last = at - reach, np.minimum(n - 1, at + reach)
    for _ in range(2):
        sums = np.concatenate([[0.0], np.cumsum(values)])
        values = (sums[last + 1] - sums[first]) / (last + 1 - first)
    return values


def draw_losses(rows: Sequence[Row]) -> str:
    """The SVG document: a panel for each group of losses, smooth curves over faint raw ones, x in epochs."""
    panels: dict[str, Curves] = {title: {} for title in PANELS}
    for name in dict.fromkeys(name for _, losses in rows for name in losses):
        title = next(title for title, pattern in PANELS.items() if pattern.match(name))
        points = [(epochs_done, losses[name]) for epochs_done, losses in rows if name in losses]
        panels[title][name] = tuple(np.array(points).T)  # (points,) each
    panels = {title: losses for title, losses in panels.items() if losses}
    columns = min(PER_ROW, max(1, len(panels)))
    height = HEIGHT * math.ceil(max(1, len(panels)) / columns)
    last = max((epochs_done for epochs_done, _ in rows), default=0.0) or 1.0
    last = math.ceil(last) if last > 10 else last
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" role="img"><title>Loss curves</title><style>{STYLE}</style>'
    ]
    if not panels:
        parts.append(_text(WIDTH / 2, height / 2, "No losses logged yet", anchor="middle"))
    for index, (title, losses) in enumerate(panels.items()):
        x, y = index % columns * WIDTH / columns, index // columns * HEIGHT
        parts += [
            f'<g transform="translate({x:.1f},{y})">',
            *_panel(title, losses, WIDTH / columns, last),
            "</g>",
        ]
    return "\n".join(parts) + "\n</svg>\n"


def _panel(title: str, losses: Curves, width: float, last: float) -> list[str]:
    """One set of axes with its curves, `width` wide; `last` is the right end of the x axis in epochs."""
    smoothed = {name: smooth(values) for name, (_, values) in losses.items()}
    low, high = _value_range([values for _, values in losses.values()], list(smoothed.values()))
    left, right, top, bottom = LEFT, width - RIGHT, TOP, HEIGHT - BOTTOM

    def to_x(epochs):
        return left + (right - left) * epochs / last

    def to_y(values):
        return bottom - (bottom - top) * (values - low) / (high - low)

    parts = [_text(left, 18, escape(title), kind="title")]
    for tick in nice_ticks(low, high, 5):
        y = to_y(tick)
        parts += [_line(left, y, right, y, "grid"), _text(left - 7, y + 4, f"{tick:g}", anchor="end")]
    for tick in nice_ticks(0, last, 6):
        x = to_x(tick)
        parts.append(_line(x, bottom, x, bottom + 4, "axis"))
        parts.append(_text(x, bottom + 18, f"{tick:g}", anchor="middle"))
    parts.append(_line(left, bottom, right, bottom, "axis"))
    parts.append(_text((left + right) / 2, bottom + 34, "epochs", anchor="middle"))

    legend, raw_paths, smooth_paths = [], [], []
    for number, (name, (epochs, values)) in enumerate(losses.items()):
        colour = number % COLOURS
        newest = f'<tspan class="value">{smoothed[name][-1]:.3f}</tspan>'
        legend.append(f'<tspan class="k{colour}">●</tspan> {escape(name)} {newest}')
        raw_paths.append(_path(to_x(epochs), to_y(values), f"raw c{colour}"))
        smooth_paths.append(_path(to_x(epochs), to_y(smoothed[name]), f"smooth c{colour}"))
    parts.append(_text(left, 38, "&#160;&#160;&#160;".join(legend)))
    # The inner svg clips its content; its viewBox keeps the panel's coordinates.
    box = f"{left:.1f} {top:.1f} {right - left:.1f} {bottom - top:.1f}"
    x, y, wide, high = box.split()
    clip = f'<svg x="{x}" y="{y}" width="{wide}" height="{high}" viewBox="{box}">'
    return [*parts, clip, *raw_paths, *smooth_paths, "</svg>"]


def _text(x: float, y: float, markup: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{markup}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _path(xs: np.ndarray, ys: np.ndarray, kind: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    dot = " h.1" if len(xs) == 1 else ""  # a lone point would not show
    return f'<path class="{kind}" d="M{points}{dot}"/>'


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers in [low, high], at most `most` + 1, in steps of 1, 2 or 5 times a power of ten."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def _value_range(raw: Sequence[np.ndarray], smoothed: Sequence[np.ndarray]) -> tuple[float, float]:
    """The y range of a panel: every smoothed curve whole, and the raw ones without their rare spikes."""
    values, means = np.concatenate(raw), np.concatenate(smoothed)
    low, high = min(np.percentile(values, 1), means.min()), max(np.percentile(values, 99), means.max())
    if 0 < low < 0.4 * high:  # near enough to zero to start there
        low = 0.0
    margin = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return (low if low == 0 else low - margin), high + margin
