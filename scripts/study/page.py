"""The page of a study: a table of means and spreads, what differs, loss curves, and the same test images of every run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dominate import tags
from dominate.util import raw

from scripts.study.runs import BEYOND, HINT
from util.metrics.evaluation import higher_is_better
from util.watch.html_page import HtmlPage, printable, url
from util.watch.loss_log import read_loss_records
from util.watch.loss_plot import smooth

STYLE = """
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .9rem .35rem 0;text-align:left;vertical-align:top;white-space:nowrap}
thead th{border-bottom:1px solid var(--line);font-weight:600}
tbody tr+tr td,tbody tr+tr th{border-top:1px solid var(--line)}
tbody th{font-weight:600}
td small,th small{display:block;color:var(--faint);font-weight:400}
.grid td,.grid th{padding:.15rem;border:0!important;text-align:center;font-size:.8rem}
.grid .first{padding-left:.8rem}
.grid img{display:block;width:70px;image-rendering:pixelated;border-radius:3px;background:var(--line)}
.yes{font-weight:600}.no{color:var(--faint)}
details summary{cursor:pointer;color:var(--link)}
p{max-width:60rem;margin:.4rem 0}
"""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#6f5bb5", "#56b4e9", "#8c564b")
GREY = "#808893"  # readable on a light page and on a dark one
PANELS = 3  # side by side in a drawing
TITLE = {"color": GREY, "fontsize": 9.5}


class StudyPage(HtmlPage):
    """An `HtmlPage` with tables, paragraphs and a grid of images."""

    def add(self, tag: Any) -> None:
        self._parts.append(tag.render(pretty=False))

    def add_text(self, text: str) -> None:
        self.add(tags.p(printable(text)))

    def add_table(self, head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> None:
        """Cells are text or tags; the first of a row heads it."""
        table = tags.table(tags.thead(tags.tr(*(tags.th(cell) for cell in head))))
        body = table.add(tags.tbody())
        for first, *others in rows:
            body.add(tags.tr(tags.th(first), *(cell if _is_cell(cell) else tags.td(cell) for cell in others)))
        self.add(tags.div(table, cls="card wide"))


def write_page(out: Path, results: Mapping[str, Any], facts: Mapping[str, str], samples: int) -> None:
    """Write `out`/index.html with curves.svg and seeds.svg beside it.

    Args:
        results: what study.json holds: "runs", "summaries", "differences", "rule", "untranslated".
        facts: named values for the head of the page.
        samples: how many test images are shown, evenly spaced in the order of their names.
    """
    runs, summaries = results["runs"], results["summaries"]
    labels = list(dict.fromkeys(run["label"] for run in runs))
    page = StudyPage(out, f"Study: {out.resolve().name}")
    page.add(tags.style(raw(STYLE)))
    page.add_facts(facts)
    for run in runs:
        if run["failure"]:
            page.add_text(f"Failed: {run['name']}: {run['failure']}")
    page.add_header("Mean ± standard deviation over seeds")
    _add_numbers(page, results, labels)
    if summaries:
        page.add_text("A dot is a seed, a bar their mean, the dotted line the source images as they are.")
        draw_seeds(out / "seeds.svg", runs, list(summaries), results["untranslated"])
        page.add_plot("seeds.svg", "Each seed's number, by metric and configuration")
    page.add_header("Which differences exceed the spread between seeds")
    _add_differences(page, results)
    if draw_curves(out, runs):
        page.add_header("Losses while training")
        page.add_text("Thin: each seed; thick: their mean, smoothed. NCE contains lambda_NCE.")
        page.add_plot("curves.svg", "Loss curves of all runs")
    _add_samples(page, out, runs, labels, samples)
    page.save()


def _add_numbers(page: StudyPage, results: Mapping[str, Any], labels: Sequence[str]) -> None:
    runs, summaries = results["runs"], results["summaries"]
    head = [
        "configuration",
        *(f"{metric} {_arrow(metric)}" for metric in summaries),
        "images",
        "training, minutes",
    ]
    rows = []
    for label in labels:
        mine = [run for run in runs if run["label"] == label]
        cells: list[Any] = [label]
        for metric, rows_of in summaries.items():
            if label in rows_of:
                seeds = [run["numbers"][metric] for run in mine if run["numbers"]]
                each = ", ".join("–" if value is None else format_number(value) for value in seeds)
                cells.append(tags.td(format_summary(rows_of[label]), tags.small(each)))
            else:
                cells.append("–")
        images = sorted({run["images"] for run in mine})
        cells.append(str(images[0]) if len(images) == 1 else f"{images[0]} to {images[-1]}")
        cells.append(f"{np.mean([run['seconds'] for run in mine]) / 60:.1f}")
        rows.append(cells)
    reference = results["untranslated"]
    cells = [format_number(reference[metric]) if metric in reference else "–" for metric in summaries]
    rows.append([tags.span("not translated", cls="no"), *cells, "", ""])
    page.add_table(head, rows)
    page.add_text(
        "Below each mean the seeds' numbers, in the order of the seeds. The last row judges the source images as they are. "
        "The minutes are of the wall clock and include what else the machine did."
    )


def _add_differences(page: StudyPage, results: Mapping[str, Any]) -> None:
    page.add_text(results["rule"])
    for metric, found in results["differences"].items():
        if not found:
            page.add_text(f"{metric}: fewer than two seeds of each, so there is no spread to compare with.")
            continue
        page.add_text(verdict_sentence(metric, found))
        rows = []
        for pair in found:
            kind = "yes" if pair["verdict"] == BEYOND else "" if pair["verdict"] == HINT else "no"
            numbers = [f"{pair['difference']:+.4g}", f"{pair['in_spreads']:.1f}", f"{pair['t']:.2f}"]
            numbers += [format_p(pair["p"]), format_p(pair["p_holm"]), pair["verdict"]]
            rows.append(
                [f"{pair['first']} − {pair['second']}", *(tags.td(text, cls=kind) for text in numbers)]
            )
        details = StudyPage(page.folder, "")
        details.add_table(
            ["pair", "difference", "in pooled standard deviations", "t", "p", "p, Holm", ""], rows
        )
        page.add(
            tags.details(tags.summary(f"all {len(found)} pairs in {metric}"), raw("".join(details._parts)))
        )


def _add_samples(
    page: StudyPage, out: Path, runs: Sequence[Mapping[str, Any]], labels: Sequence[str], count: int
) -> None:
    folders = {
        run["name"]: out / "results" / run["name"] / "test_latest" / "images"
        for run in runs
        if run["numbers"]
    }
    if not folders:
        return
    first = next(iter(folders.values()))
    names = sorted(path.relative_to(first / "real_A") for path in (first / "real_A").rglob("*.png"))
    chosen = [names[index] for index in spaced(len(names), count)]
    columns = {
        label: [run for run in runs if run["label"] == label and run["name"] in folders] for label in labels
    }
    columns = {label: mine for label, mine in columns.items() if mine}

    def image(folder: Path, domain: str, name: Path) -> tags.td:
        if not (folder / domain / name).is_file():
            return tags.td()
        file = (folder / domain / name).relative_to(out).as_posix()
        return tags.td(
            tags.a(tags.img(src=url(file), alt=f"{domain} {name}", loading="lazy"), href=url(file))
        )

    top = [
        tags.th("source"),
        *(tags.th(label, colspan=len(mine), cls="first") for label, mine in columns.items()),
    ]
    seeds = [tags.th()]
    for mine in columns.values():
        seeds += [
            tags.th(tags.small(f"seed {run['seed']}"), cls="" if i else "first") for i, run in enumerate(mine)
        ]
    table = tags.table(
        tags.thead(tags.tr(*top, tags.th("a target", cls="first")), tags.tr(*seeds)), cls="grid"
    )
    for name in chosen:
        row = [image(first, "real_A", name)]
        for mine in columns.values():
            for i, run in enumerate(mine):
                cell = image(folders[run["name"]], "fake_B", name)
                cell["class"] = "" if i else "first"
                row.append(cell)
        target = image(first, "real_B", name)
        target["class"] = "first"
        table.add(tags.tr(*row, target))
    page.add_header("The same test images, translated by every run")
    page.add_text(
        "Evenly spaced in the order of their names, none picked. A target is a real image of B, not a pair."
    )
    page.add(tags.div(table, cls="card wide"))


# ---- drawings ----


def draw_seeds(
    path: Path, runs: Sequence[Mapping[str, Any]], metrics: Sequence[str], reference: Mapping[str, float]
) -> None:
    """A panel a metric: every seed's number as a dot, their mean as a bar, the untranslated images as a dashed line."""
    labels = list(dict.fromkeys(run["label"] for run in runs))
    figure, panels = _figure(len(metrics), height=3.0)
    for axes, metric in zip(panels, metrics, strict=True):
        for place, label in enumerate(labels):
            values = [run["numbers"].get(metric) for run in runs if run["label"] == label and run["numbers"]]
            values = [value for value in values if value is not None]
            colour = COLOURS[place % len(COLOURS)]
            if values:
                axes.plot(
                    [place - 0.28, place + 0.28], [np.mean(values)] * 2, color=colour, linewidth=3, alpha=0.5
                )
            axes.plot([place] * len(values), values, "o", color=colour, markersize=5)
        if reference.get(metric) is not None:
            axes.axhline(reference[metric], color=GREY, linestyle=":", linewidth=1)
        axes.set_title(f"{metric} {_arrow(metric)}", **TITLE)
        axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
        axes.set_xlim(-0.6, len(labels) - 0.4)
    _save(figure, path)


def draw_curves(out: Path, runs: Sequence[Mapping[str, Any]]) -> bool:
    """Write curves.svg, a panel a loss with a colour a configuration; False where nothing was logged."""
    from matplotlib.ticker import LogFormatter

    labels = list(dict.fromkeys(run["label"] for run in runs))
    curves: dict[
        str, dict[str, list[tuple[np.ndarray, np.ndarray]]]
    ] = {}  # loss -> label -> (images, values) a seed
    for run in runs:
        points: dict[str, list[tuple[float, float]]] = {}
        for record in read_loss_records(out / "runs" / run["name"]):
            for loss, value in record["losses"].items():
                if value is not None:
                    points.setdefault(loss, []).append((record["images"], value))
        for loss, pairs in points.items():
            images, values = np.array(pairs, float).T
            curves.setdefault(loss, {}).setdefault(run["label"], []).append((images, smooth(values)))
    if not curves:
        return False
    figure, panels = _figure(len(curves), height=2.6)
    for axes, (loss, by_label) in zip(panels, curves.items(), strict=True):
        levels = []
        for label, seeds in by_label.items():
            colour = COLOURS[labels.index(label) % len(COLOURS)]
            for images, values in seeds:
                axes.plot(images, values, color=colour, linewidth=0.7, alpha=0.35)
            end = min(images[-1] for images, _ in seeds)
            at = seeds[0][0][seeds[0][0] <= end]
            mean = np.mean([np.interp(at, images, values) for images, values in seeds], axis=0)
            axes.plot(at, mean, color=colour, linewidth=1.8, label=label)
            levels.append(mean[-1])
        if min(levels) > 0 and max(levels) > 4 * min(levels):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter())
        axes.set_title(loss, **TITLE)
        axes.set_xlabel("images")
    handles = {line.get_label(): line for axes in panels for line in axes.get_legend_handles_labels()[0]}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        labelcolor=GREY,
    )
    _save(figure, out / "curves.svg")
    return True


def _figure(count: int, height: float) -> tuple[Any, list[Any]]:
    """A figure with `count` panels, `PANELS` a row, in colours for light and dark pages."""
    from matplotlib.figure import Figure

    columns = min(PANELS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4.2 * columns, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[:count]:
        axes.set_facecolor("none")
        axes.tick_params(which="both", colors=GREY, labelsize=8)
        axes.xaxis.label.set(color=GREY, fontsize=8.5)
        axes.grid(color=GREY, alpha=0.2)
        for side, spine in axes.spines.items():
            spine.set(color=GREY, visible=side in ("left", "bottom"))
    return figure, panels[:count]


def _save(figure: Any, path: Path) -> None:
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "study"}):  # the same drawing gives the same file
        figure.savefig(path, transparent=True, metadata={"Date": None})


# ---- words ----


def verdict_sentence(metric: str, found: Sequence[Mapping[str, Any]]) -> str:
    """What the comparisons of one metric amount to."""

    def listed(verdict: str) -> str:
        named = [f"{p['first']} vs {p['second']}" for p in found if p["verdict"] == verdict]
        return ", ".join(named) or "none"

    return f"{metric}: beyond the spread: {listed(BEYOND)}. Hints: {listed(HINT)}. ({len(found)} pairs)"


def format_summary(summary: Mapping[str, Any]) -> str:
    """Mean ± spread, to two digits of the spread."""
    mean, std = summary["mean"], summary["std"]
    if std is None or not math.isfinite(std) or std == 0:
        return format_number(mean)
    digits = max(0, 1 - math.floor(math.log10(std)))
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def format_number(value: float) -> str:
    """Four significant digits, never in powers of ten for what a metric gives."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def spaced(total: int, count: int) -> list[int]:
    """`count` indices (all, where there are fewer) evenly spaced over `total`, without repeats."""
    count = min(total, count)
    return [index * total // count for index in range(count)]


def _arrow(metric: str) -> str:
    return "↑" if higher_is_better(metric) else "↓"


def _is_cell(cell: Any) -> bool:
    return isinstance(cell, tags.td)
