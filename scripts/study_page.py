"""The page of a study: the test images of every run, means and spreads, differences and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dominate import tags
from dominate.util import raw

from scripts.judging import higher_is_better
from scripts.significance import RULE, WITHIN
from util.pages import Page, table, url

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
    """Write `out`/index.html.

    Args:
        results: what study.json holds: "runs", "summaries", "differences", "untranslated", "published".
        facts: named values for the head of the page.
        samples: how many test images are shown, evenly spaced in the order of their names.
    """
    runs = results["runs"]
    page = Page(out, title)
    page.add(tags.style(raw(STYLE)))
    page.add_facts(facts)
    for run in runs:
        if run["failure"]:
            page.add_text(f"Failed: {run['name']}: {run['failure']}")
    for folder, direction in (("test_latest", "AtoB"), ("test_latest_BtoA", "BtoA")):
        _add_samples(page, runs, samples, folder, direction)
    _add_numbers(page, results)
    _add_differences(page, results["differences"])
    page.add_link("study.json", "study.json")
    page.save()


def _add_samples(page: Page, runs: Rows, count: int, folder: str, direction: str) -> None:
    """Test images in rows, runs in columns, between the source and a target."""
    shown = [run for run in runs if run["numbers"]]

    source, target = direction.split("to")

    def images(run: Mapping[str, Any], domain: str) -> Path:
        found = page.folder / "results" / run["name"] / folder / "images"
        if (found / f"to_{target}").is_dir():  # of a model with many domains
            return found / domain.replace("fake_B", f"to_{target}") / source
        return found / domain

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
    count = min(count, len(names))
    for name in (names[index * len(names) // count] for index in range(count)):
        made = [cell(run, "fake_B", name, kind) for run, kind in columns]
        first, last = cell(shown[0], "real_A", name, "source"), cell(shown[0], "real_B", name, "first")
        grid.add(tags.tr(first, *made, last))
    page.add_header(f"The same test images, translated by every run, {direction}")
    page.add_text("Evenly spaced in the order of their names. A target is a real image, not a pair.")
    page.add(tags.div(grid, cls="card wide"))


def _add_numbers(page: Page, results: Mapping[str, Any]) -> None:
    """A row for each configuration: its numbers, with the published ones, and what it cost."""
    runs, summaries, published = results["runs"], results["summaries"], results["published"]["numbers"]
    metrics = list(dict.fromkeys([*summaries, *(metric for of in published.values() for metric in of)]))

    def cell(label: str, mine: Rows, metric: str) -> tags.td:
        parts: list[Any] = ["–"]
        if label in summaries.get(metric, {}):
            seeds = [run["numbers"][metric] for run in mine if metric in (run["numbers"] or {})]
            parts = [
                format_summary(summaries[metric][label]),
                tags.small(", ".join(map(format_number, seeds))),
            ]
        if metric in published.get(label, {}):
            parts.append(tags.small(f"published: {published[label][metric]}"))
        return tags.td(*parts)

    rows = []
    for label in dict.fromkeys(run["label"] for run in runs):
        mine = [run for run in runs if run["label"] == label]
        images = ", ".join(str(run["images"]) for run in mine)
        minutes = ", ".join(f"{run['seconds'] / 60:.1f}" for run in mine)
        rows.append([label, *(cell(label, mine, metric) for metric in metrics), images, minutes])
    reference = [format_number(results["untranslated"].get(metric)) for metric in metrics]
    rows.append(["not translated", *reference, "", ""])
    page.add_header("Mean ± standard deviation over seeds")
    arrows = (f"{metric} {'↑' if higher_is_better(metric) else '↓'}" for metric in metrics)
    page.add(table(["configuration", *arrows, "images trained", "minutes"], rows))
    page.add_text(
        "Below each mean the seeds' numbers, in the order of the seeds. The last row judges the source "
        "images as they are. Minutes are of the wall clock and depend on what else the machine does."
    )
    if published:
        page.add_text(f"Published: {results['published']['source']}")


def _add_differences(page: Page, differences: Mapping[str, Rows]) -> None:
    page.add_header("Which differences exceed the spread between seeds")
    page.add_text(RULE)
    rows = [
        [
            metric,
            f"{pair['first']} − {pair['second']}",
            *(f"{pair[name]:.3g}" for name in ("difference", "p", "p_holm")),
            pair["verdict"],
        ]
        for metric, pairs in differences.items()
        for pair in pairs
        if pair["verdict"] != WITHIN
    ]
    if rows:
        page.add(table(["metric", "pair", "difference", "p", "p, Holm", ""], rows))
    total = sum(map(len, differences.values()))
    page.add_text(f"{total - len(rows)} of {total} pairs are within the spread; study.json lists them all.")


def format_summary(summary: Mapping[str, Any]) -> str:
    """Mean ± spread, to two digits of the spread."""
    mean, std = summary["mean"], summary["std"]
    if not std:
        return format_number(mean)
    digits = max(0, 1 - math.floor(math.log10(std)))
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def format_number(value: float | None) -> str:
    """Four significant digits, without an exponent for large numbers."""
    if value is None:
        return "–"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
