"""The page of a study: means and spreads, differences, loss curves, and the test images of every run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dominate import tags
from dominate.util import raw

from scripts.plots import save
from scripts.study.plots import arrow, plot_losses, plot_seeds
from scripts.study.statistics import BEYOND, HINT
from util.watch.html_page import HtmlPage, printable, url

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


class StudyPage(HtmlPage):
    """An `HtmlPage` that also takes tags and paragraphs."""

    def add(self, tag: Any) -> None:
        self._parts.append(tag.render(pretty=False))

    def add_text(self, text: str) -> None:
        self.add(tags.p(printable(text)))


def write_page(out: Path, results: Mapping[str, Any], facts: Mapping[str, str], samples: int) -> None:
    """Write `out`/index.html with curves.svg and seeds.svg beside it.

    Args:
        results: what study.json holds: "runs", "summaries", "differences", "rule", "untranslated".
        facts: named values for the head of the page.
        samples: how many test images are shown, evenly spaced in the order of their names.
    """
    runs, summaries = results["runs"], results["summaries"]
    labels = list(dict.fromkeys(run["label"] for run in runs))
    page = StudyPage(out, f"Study of {', '.join(labels)}")
    page.add(tags.style(raw(STYLE)))
    page.add_facts(facts)
    for run in runs:
        if run["failure"]:
            page.add_text(f"Failed: {run['name']}: {run['failure']}")
    page.add_header("Mean ± standard deviation over seeds")
    _add_numbers(page, results, labels)
    if summaries:
        page.add_text("A dot is a seed, a bar their mean, the dotted line the source images as they are.")
        save(plot_seeds(runs, list(summaries), results["untranslated"]), out / "seeds.svg", transparent=True)
        page.add_plot("seeds.svg", "Each seed's number, by metric and configuration")
    page.add_header("Which differences exceed the spread between seeds")
    _add_differences(page, results)
    if curves := plot_losses(out, runs):
        save(curves, out / "curves.svg", transparent=True)
        page.add_header("Losses while training")
        page.add_text("Thin: each seed; thick: their mean, smoothed. NCE contains lambda_NCE.")
        page.add_plot("curves.svg", "Loss curves of all runs")
    _add_samples(page, runs, samples)
    page.save()


def _add_numbers(page: StudyPage, results: Mapping[str, Any], labels: Sequence[str]) -> None:
    runs, summaries = results["runs"], results["summaries"]
    rows = []
    for label in labels:
        mine = [run for run in runs if run["label"] == label]
        cells: list[Any] = [label]
        for metric, by_label in summaries.items():
            if label in by_label:
                seeds = [run["numbers"][metric] for run in mine if run["numbers"]]
                each = ", ".join("–" if value is None else format_number(value) for value in seeds)
                cells.append(tags.td(format_summary(by_label[label]), tags.small(each)))
            else:
                cells.append("–")
        images = sorted({run["images"] for run in mine})
        cells.append(str(images[0]) if len(images) == 1 else f"{images[0]} to {images[-1]}")
        cells.append(f"{np.mean([run['seconds'] for run in mine]) / 60:.1f}")
        rows.append(cells)
    reference = results["untranslated"]
    cells = [format_number(reference[metric]) if metric in reference else "–" for metric in summaries]
    rows.append([tags.span("not translated", cls="no"), *cells, "", ""])
    metrics = [f"{metric} {arrow(metric)}" for metric in summaries]
    page.add(_table(["configuration", *metrics, "images trained", "training, minutes"], rows))
    page.add_text(
        "Below each mean the seeds' numbers, in the order of the seeds. The last row judges the source "
        "images as they are. Minutes are of the wall clock, and so depend on the other load of the machine."
    )


def _add_differences(page: StudyPage, results: Mapping[str, Any]) -> None:
    page.add_text(results["rule"])
    head = ["pair", "difference", "in pooled standard deviations", "t", "p", "p, Holm", ""]
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
            cells = [tags.td(text, cls=kind) for text in numbers]
            rows.append([f"{pair['first']} − {pair['second']}", *cells])
        page.add(tags.details(tags.summary(f"{count_pairs(found)} in {metric}"), _table(head, rows)))


def _add_samples(page: StudyPage, runs: Sequence[Mapping[str, Any]], count: int) -> None:
    columns: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["numbers"]:
            columns.setdefault(run["label"], []).append(run)
    if not columns:
        return

    def images(run: Mapping[str, Any], domain: str) -> Path:
        return page.folder / "results" / run["name"] / "test_latest" / "images" / domain

    def cell(run: Mapping[str, Any], domain: str, name: Path, first: bool = True) -> tags.td:
        path, kind = images(run, domain) / name, "first" if first else ""
        if not path.is_file():
            return tags.td(cls=kind)
        file = url(path.relative_to(page.folder).as_posix())
        return tags.td(
            tags.a(tags.img(src=file, alt=f"{domain} {name}", loading="lazy"), href=file), cls=kind
        )

    any_run = next(iter(columns.values()))[0]
    names = sorted(
        path.relative_to(images(any_run, "real_A")) for path in images(any_run, "real_A").rglob("*.png")
    )
    places = [(run, number == 0) for mine in columns.values() for number, run in enumerate(mine)]
    top = [tags.th(label, colspan=len(mine), cls="first") for label, mine in columns.items()]
    seeds = [
        tags.th(tags.small(f"seed {run['seed']}"), cls="first" if first else "") for run, first in places
    ]
    head = tags.thead(
        tags.tr(tags.th("source"), *top, tags.th("a target", cls="first")), tags.tr(tags.th(), *seeds)
    )
    table = tags.table(head, cls="grid")
    for name in (names[index] for index in spaced(len(names), count)):
        made = [cell(run, "fake_B", name, first) for run, first in places]
        table.add(tags.tr(cell(any_run, "real_A", name, False), *made, cell(any_run, "real_B", name)))
    page.add_header("The same test images, translated by every run")
    page.add_text(
        "Evenly spaced in the order of their names, none picked. A target is a real image of B, not a pair."
    )
    page.add(tags.div(table, cls="card wide"))


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> tags.div:
    """A table on a card. Cells are text or tags; the first of a row heads it."""
    table = tags.table(tags.thead(tags.tr(*map(tags.th, head))))
    body = table.add(tags.tbody())
    for first, *others in rows:
        cells = (cell if isinstance(cell, tags.td) else tags.td(cell) for cell in others)
        body.add(tags.tr(tags.th(first), *cells))
    return tags.div(table, cls="card wide")


# ---- words ----


def verdict_sentence(metric: str, found: Sequence[Mapping[str, Any]]) -> str:
    """The comparisons of one metric in a sentence."""

    def listed(verdict: str) -> str:
        named = [f"{p['first']} vs {p['second']}" for p in found if p["verdict"] == verdict]
        return ", ".join(named) or "none"

    return f"{metric}: beyond the spread: {listed(BEYOND)}. Hints: {listed(HINT)}. ({count_pairs(found)})"


def count_pairs(found: Sequence[object]) -> str:
    """1 pair, 3 pairs."""
    return f"{len(found)} pair{'s' * (len(found) != 1)}"


def format_summary(summary: Mapping[str, Any]) -> str:
    """Mean ± spread, to two digits of the spread."""
    mean, std = summary["mean"], summary["std"]
    if std is None or not math.isfinite(std) or std == 0:
        return format_number(mean)
    digits = max(0, 1 - math.floor(math.log10(std)))
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def format_number(value: float) -> str:
    """Four significant digits, without an exponent for large numbers."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def spaced(total: int, count: int) -> list[int]:
    """`count` indices (all, if there are fewer) evenly spaced over `total`, without repeats."""
    count = min(total, count)
    return [index * total // count for index in range(count)]
