"""The web page of a training, `web/index.html`: its state, loss curves and the images of every epoch.

The curves are one SVG file, written by hand in milliseconds: matplotlib takes most of a second.
"""

import math
import re
import time
from array import array
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from util.images import save_png
from util.pages import Page
from util.watch.loss_log import LossRecord

IMAGE = re.compile(r"epoch(\d+)_(.+)\.png")
SAMPLES, SAMPLE_INPUTS = "samples", "sample_inputs"  # labels of the images that every epoch shows
MOST_STRIPS = 8  # epochs whose samples are shown
WIDTH, HEIGHT, PER_ROW = 400, 230, 3  # of a panel in pixels; panels side by side
LEFT, RIGHT, TOP, BOTTOM = 46, WIDTH - 14, 34, HEIGHT - 38  # the axes in it
MOST_POINTS = 1000  # of a curve; more are averaged
SMOOTHING = 0.02  # half the window of the running mean, as a part of the curve

SVG_STYLE = """
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#5b6470}
.title{font-size:14px;font-weight:600;fill:#1c2128}
.grid{stroke:#e3e7ec}.axis{stroke:#aab2bd}
.curve{fill:none;stroke:#0072b2;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.raw{stroke-width:1;opacity:.3}
@media(prefers-color-scheme:dark){
text{fill:#9aa4b1}.title{fill:#e6eaf0}.grid{stroke:#2a3039}.axis{stroke:#4b5563}.curve{stroke:#56b4e9}
}"""


class TrainingPage:
    """A watcher; writes the page with each row of images, first losses of an epoch, and at the end."""

    name = "the web page"

    def __init__(self, folder: Path, run: str, epochs: int):
        self.web, self.run, self.epochs = folder / "web", run, epochs

    def begin(self, records: Sequence[LossRecord]) -> None:
        self._curves: dict[str, array] = {}  # compact: a run can log half a million times
        self._newest: LossRecord | None = None
        self._order: list[str] = []  # the labels as the model orders them
        for record in records:
            self._add(record)
        self._epoch = records[-1].epoch if records else 0  # images of a later one are another run's

    def losses(self, record: LossRecord) -> None:
        begins = self._newest is None or record.epoch != self._newest.epoch
        self._add(record)
        if begins:
            self._write()

    def images(self, epoch: int, step: int, images: Mapping[str, np.ndarray], keep: bool) -> None:
        if keep:
            self._epoch, self._order = epoch, list(images)
            for label, image in images.items():
                save_png(image, self.web / _file(epoch, label))
            self._write()

    def close(self) -> None:
        self._write()

    def _add(self, record: LossRecord) -> None:
        self._newest = record
        for name, value in record.finite().items():
            self._curves.setdefault(name, array("d")).extend((record.epochs_done, value))

    def _write(self) -> None:
        page, state = Page(self.web, self.run), {}
        if record := self._newest:
            state = {"epoch": f"{record.epoch} of {self.epochs}", "images": f"{record.images:,}"}
            state |= {"learning rate": f"{record.lr:.3g}", "time left": record.time_left(self.epochs)}
            state["seconds per image"] = f"{record.seconds_per_image:.3f}"
        page.add_facts({**state, "written": time.strftime("%Y-%m-%d %H:%M")})
        page.add_link("../train_opt.txt", "all options")
        if self._curves:
            self.web.mkdir(parents=True, exist_ok=True)
            (self.web / "losses.svg").write_text(draw_losses(self._curves), encoding="utf-8")
            page.add_plot("losses.svg", "Loss curves")
        rows: dict[int, list[str]] = {}  # epoch -> labels
        for path in self.web.glob("images/*.png"):
            if (match := IMAGE.fullmatch(path.name)) and int(match[1]) <= self._epoch:
                rows.setdefault(int(match[1]), []).append(match[2])
        epochs = sorted(rows, reverse=True)
        self._add_samples(page, [epoch for epoch in epochs if (self.web / _file(epoch, SAMPLES)).is_file()])
        if epochs:
            page.add_header("Images of the training")
        for epoch in epochs:
            labels = [label for label in self._order if label in rows[epoch]]
            labels += sorted(set(rows[epoch]) - set(labels))  # what the model no longer shows
            page.add_images(f"Epoch {epoch}", {label: _file(epoch, label) for label in labels})
        page.save()

    def _add_samples(self, page: Page, epochs: Sequence[int]) -> None:
        """The same images in up to `MOST_STRIPS` epochs, evenly spaced from the newest to the first."""
        if not epochs:
            return
        page.add_header("The same images over time")
        page.add_strip("inputs", _file(0, SAMPLE_INPUTS))
        for index in np.linspace(0, len(epochs) - 1, min(len(epochs), MOST_STRIPS)).round().astype(int):
            page.add_strip(f"epoch {epochs[index]}", _file(epochs[index], SAMPLES))


def _file(epoch: int, label: str) -> str:
    if label == SAMPLE_INPUTS:
        return "samples/inputs.png"
    return f"samples/epoch{epoch:03d}.png" if label == SAMPLES else f"images/epoch{epoch:03d}_{label}.png"


# ---- the curves of the losses, in light or dark colours as the reader's system ----


def draw_losses(curves: Mapping[str, Sequence[float]], unit: str = "epochs") -> str:
    """The SVG of finite values by name (x, value, x, ...); of epochs a smooth curve on the raw one."""
    width, height = WIDTH * PER_ROW, HEIGHT * math.ceil(len(curves) / PER_ROW)
    last = max((curve[-2] for curve in curves.values()), default=0.0)
    panels = []
    for index, (name, curve) in enumerate(curves.items()):
        x, y = index % PER_ROW * WIDTH, index // PER_ROW * HEIGHT
        epochs, values = thinned(np.reshape(curve, (-1, 2))).T
        panels.append(f'<g transform="translate({x},{y})">{_panel(name, epochs, values, last, unit)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img"><title>Loss curves</title><style>{SVG_STYLE}</style>\n'
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


def _panel(name: str, epochs: np.ndarray, values: np.ndarray, last: float, unit: str) -> str:
    """The axes and the curve of one loss; `last` is the right end of the x axis."""
    smoothed = smooth(values) if unit == "epochs" else values
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
    parts.append(_text((LEFT + RIGHT) / 2, BOTTOM + 34, unit, "middle"))
    parts.append(f'<path class="axis" d="M{LEFT},{BOTTOM}H{RIGHT}"/>')
    return "".join([*parts, path(values, "raw"), path(smoothed, "")])


def _text(x: float, y: float, markup: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{markup}</text>'
