"""The page of a study: means and spreads, differences, costs, and the test images of every run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dominate import tags
from dominate.util import raw
from matplotlib.figure import Figure

from scripts.judging import higher_is_better
from scripts.plots import COLOURS, GREY, panels, save
from scripts.significance import BEYOND, HINT
from util.pages import Page, printable, table, url

STYLE = """
.grid td,.grid th{padding:.15rem;border:0!important;text-align:center;font-size:.8rem}
.grid .first{padding-left:.8rem}
.grid .source{position:sticky;left:0;background:var(--card)}
.grid img{display:block;width:70px;image-rendering:pixelated;border-radius:3px;background:var(--line)}
"""

Rows = Sequence[Mapping[str, Any]]  # of runs, as study.json has them


def write_page(
    out: Path, title: str, results: Mapping[str, Any], facts: Mapping[str, str], samples: int
) -> None:
    """Write `out`/index.html with seeds.svg beside it.

    Args:
        results: what study.json holds: "runs", "summaries", "differences", "rule", "untranslated",
            "published".
        facts: named values for the head of the page.
        samples: how many test images are shown, evenly spaced in the order of their names.
    """
    runs, summaries = results["runs"], results["summaries"]
    labels = list(dict.fromkeys(run["label"] for run in runs))
    page = Page(out, title)
    page.add(tags.style(raw(STYLE)))
    page.add_facts(facts)
    for run in runs:
        if run["failure"]:
            page.add_text(f"Failed: {run['name']}: {run['failure']}")
    for folder, direction in (("test_latest", "AtoB"), ("test_latest_BtoA", "BtoA")):
        _add_samples(page, runs, samples, folder, direction)
    page.add_header("Mean ± standard deviation over seeds")
    _add_numbers(page, results, labels)
    if summaries:
        page.add_text("A dot is a seed, a bar their mean, the dotted line the source images as they are.")
        save(plot_seeds(runs, list(summaries), results["untranslated"]), out / "seeds.svg", transparent=True)
        page.add_plot("seeds.svg", "Each seed's number, by metric and configuration")
    page.add_header("Which differences exceed the spread between seeds")
    _add_differences(page, results)
    page.add_header("What each configuration costs")
    _add_costs(page, results, labels)
    page.add_header("Receipts")
    _add_receipts(page, runs)
    page.save()


def _add_samples(page: Page, runs: Rows, count: int, folder: str, direction: str) -> None:
    """Test images in rows, runs in columns, between the source and a target."""
    shown = [run for run in runs if run["numbers"]]

    def images(run: Mapping[str, Any], domain: str) -> Path:
        return page.folder / "results" / run["name"] / folder / "images" / domain

    def cell(run: Mapping[str, Any], domain: str, name: Path, kind: str = "") -> tags.td:
        path = images(run, domain) / name
        if not path.is_file():
            return tags.td(cls=kind)
        file = url(path.relative_to(page.folder).as_posix())
        image = tags.img(src=file, alt=f"{domain} {name}", loading="lazy")
        return tags.td(tags.a(image, href=file), cls=kind)

    sources = images(shown[0], "real_A") if shown else page.folder / "none"
    names = sorted(path.relative_to(sources) for path in sources.rglob("*.png"))
    if not names:
        return
    columns = [(run, "first" if run["seed"] == shown[0]["seed"] else "") for run in shown]
    heads = [tags.th(run["label"], tags.small(f"seed {run['seed']}"), cls=kind) for run, kind in columns]
    head = tags.tr(tags.th("source", cls="source"), *heads, tags.th("a target", cls="first"))
    grid = tags.table(tags.thead(head), cls="grid")
    for name in (names[index] for index in spaced(len(names), count)):
        made = [cell(run, "fake_B", name, kind) for run, kind in columns]
        first, last = cell(shown[0], "real_A", name, "source"), cell(shown[0], "real_B", name, "first")
        grid.add(tags.tr(first, *made, last))
    page.add_header(f"The same test images, translated by every run, {direction}")
    page.add_text("Evenly spaced in the order of their names. A target is a real image, not a pair.")
    page.add(tags.div(grid, cls="card wide"))


def _add_numbers(page: Page, results: Mapping[str, Any], labels: Sequence[str]) -> None:
    runs, summaries, published = results["runs"], results["summaries"], results["published"]["numbers"]
    metrics = list(dict.fromkeys([*summaries, *(metric for of in published.values() for metric in of)]))

    def cell(label: str, metric: str) -> tags.td:
        parts: list[Any] = ["–"]
        mine = [run for run in runs if run["label"] == label and run["numbers"]]
        if label in summaries.get(metric, {}):
            seeds = ", ".join(format_number(run["numbers"].get(metric)) for run in mine)
            parts = [format_summary(summaries[metric][label]), tags.small(seeds)]
        if metric in published.get(label, {}):
            parts.append(tags.small(f"published: {published[label][metric]}"))
        return tags.td(*parts)

    rows = [[label, *(cell(label, metric) for metric in metrics)] for label in labels]
    reference = [format_number(results["untranslated"].get(metric)) for metric in metrics]
    rows.append(["not translated", *reference])
    page.add(table(["configuration", *(f"{metric} {arrow(metric)}" for metric in metrics)], rows))
    page.add_text(
        "Below each mean the seeds' numbers, in the order of the seeds. The last row judges the source "
        "images as they are."
    )
    if published:
        page.add_text(f"Published: {results['published']['source']}")


def _add_differences(page: Page, results: Mapping[str, Any]) -> None:
    page.add_text(results["rule"])
    head = ["pair", "difference", "in pooled standard deviations", "t", "p", "p, Holm", ""]
    for metric, found in results["differences"].items():
        if not found:
            page.add_text(f"{metric}: fewer than two seeds of each, so there is no spread to compare with.")
            continue
        page.add_text(verdict_sentence(metric, found))
        rows = [
            [
                f"{pair['first']} − {pair['second']}",
                *(f"{pair[name]:.3g}" for name in ("difference", "in_spreads", "t", "p", "p_holm")),
                pair["verdict"],
            ]
            for pair in found
        ]
        page.add(tags.details(tags.summary(f"pairs in {metric}"), table(head, rows)))


def _add_costs(page: Page, results: Mapping[str, Any], labels: Sequence[str]) -> None:
    rows = []
    for label in labels:
        mine = [run for run in results["runs"] if run["label"] == label]
        minutes = [run["seconds"] / 60 for run in mine]
        numbers = ([run["step_ms"] for run in mine], [run["images"] for run in mine], minutes)
        rows.append([label, *map(_over_seeds, numbers)])
    page.add(table(["configuration", "ms per step", "images trained", "minutes"], rows))
    page.add_text(
        "Of several seeds the range. Times are of the wall clock, waiting for data included, and depend on "
        "what else the machine does; a step is the median of the training's log."
    )


def _add_receipts(page: Page, runs: Rows) -> None:
    files = {
        "numbers": "results/{}/test_latest/evaluation.json",
        "test images": "results/{}/test_latest/index.html",
        "numbers BtoA": "results/{}/test_latest_BtoA/evaluation.json",
        "test images BtoA": "results/{}/test_latest_BtoA/index.html",
        "options": "runs/{}/train_opt.txt",
        "training": "runs/{}/web/index.html",
        "losses": "runs/{}/loss_log.txt",
        "output": "logs/{}.log",
    }
    rows = []
    for run in runs:
        cell = tags.td()
        for text, file in files.items():
            if (page.folder / file.format(run["name"])).is_file():
                cell.add(tags.a(text, href=url(file.format(run["name"]))), " ")
        rows.append([run["name"], cell, tags.td(tags.code(printable(f"train.py {run['train']}")))])
    page.add(table(["run", "files", "command"], rows))
    page.add_text("study.json holds all numbers of this page, with versions and hardware.")
    page.add_link("study.json", "study.json")


# ---- drawings ----


def plot_seeds(runs: Rows, metrics: Sequence[str], reference: Mapping[str, float]) -> Figure:
    """A panel for each metric: a dot per seed, a bar at their mean, a dotted line for the source images."""
    labels = list(dict.fromkeys(run["label"] for run in runs))
    figure, axes = panels([f"{metric} {arrow(metric)}" for metric in metrics])
    for panel, metric in zip(axes, metrics, strict=True):
        for place, label in enumerate(labels):
            values = [run["numbers"].get(metric) for run in runs if run["label"] == label and run["numbers"]]
            values = [value for value in values if value is not None]
            colour = COLOURS[place % len(COLOURS)]
            if values:
                panel.plot([place - 0.28, place + 0.28], [np.mean(values)] * 2, color=colour, lw=3, alpha=0.5)
            panel.plot([place] * len(values), values, "o", color=colour, markersize=5)
        if reference.get(metric) is not None:
            panel.axhline(reference[metric], color=GREY, linestyle=":", linewidth=1)
        panel.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) <= 6 else 60, ha="right")
        panel.set_xlim(-0.6, len(labels) - 0.4)
    return figure


# ---- words ----


def arrow(metric: str) -> str:
    """Which way a metric improves."""
    return "↑" if higher_is_better(metric) else "↓"


def verdict_sentence(metric: str, found: Rows) -> str:
    """The comparisons of one metric in a sentence."""

    def listed(verdict: str) -> str:
        named = [f"{pair['first']} vs {pair['second']}" for pair in found if pair["verdict"] == verdict]
        return ", ".join(named) or "none"

    pairs = f"{len(found)} pair{'s' * (len(found) != 1)}"
    return f"{metric}: beyond the spread: {listed(BEYOND)}. Hints: {listed(HINT)}. ({pairs})"


def format_summary(summary: Mapping[str, Any]) -> str:
    """Mean ± spread, to two digits of the spread."""
    mean, std = summary["mean"], summary["std"]
    if std is None or not math.isfinite(std) or std == 0:
        return format_number(mean)
    digits = max(0, 1 - math.floor(math.log10(std)))
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def format_number(value: float | None) -> str:
    """Four significant digits, without an exponent for large numbers."""
    if value is None:
        return "–"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _over_seeds(values: Sequence[float | None]) -> str:
    """One number, or the range of several."""
    known = [value for value in values if value is not None]
    ends = dict.fromkeys([format_number(min(known)), format_number(max(known))]) if known else ["–"]
    return " to ".join(ends)


def spaced(total: int, count: int) -> list[int]:
    """`count` indices (all, if there are fewer) evenly spaced over `total`, without repeats."""
    count = min(total, count)
    return [index * total // count for index in range(count)]
