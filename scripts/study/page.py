"""The page of a study: means and spreads, differences, loss curves, and the test images of every run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dominate import tags
from dominate.util import raw

from scripts.plots import save
from scripts.study.plots import arrow, plot_losses, plot_seeds
from scripts.study.statistics import BEYOND, HINT
from util.pages import Page, printable, table, url

STYLE = """
.grid td,.grid th{padding:.15rem;border:0!important;text-align:center;font-size:.8rem}
.grid .first{padding-left:.8rem}
.grid .source{position:sticky;left:0;background:var(--card)}
.grid img{display:block;width:70px;image-rendering:pixelated;border-radius:3px;background:var(--line)}
.yes{font-weight:600}.no{color:var(--faint)}
"""


def write_page(
    out: Path, title: str, results: Mapping[str, Any], facts: Mapping[str, str], samples: int
) -> None:
    """Write `out`/index.html with curves.svg and seeds.svg beside it.

    Args:
        results: what study.json holds: "runs", "summaries", "differences", "rule", "untranslated",
            "parameters", "published".
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
    if curves := plot_losses(out, runs):
        save(curves, out / "curves.svg", transparent=True)
        page.add_header("Losses while training")
        page.add_text(
            "Thin: each seed; thick: their mean, smoothed. A loss contains its weight. Losses of one name "
            "can mean different things in different systems."
        )
        page.add_plot("curves.svg", "Loss curves of all runs")
    page.add_header("Receipts")
    _add_receipts(page, runs)
    page.save()


def _add_numbers(page: Page, results: Mapping[str, Any], labels: Sequence[str]) -> None:
    runs, summaries, published = results["runs"], results["summaries"], results["published"]["numbers"]
    metrics = list(dict.fromkeys([*summaries, *(metric for of in published.values() for metric in of)]))

    def cell(label: str, metric: str) -> tags.td:
        parts: list[Any] = ["–"]
        if label in summaries.get(metric, {}):
            seeds = [run["numbers"][metric] for run in runs if run["label"] == label and run["numbers"]]
            each = ", ".join("–" if value is None else format_number(value) for value in seeds)
            parts = [format_summary(summaries[metric][label]), tags.small(each)]
            subsets = [run["deviations"].get(metric) for run in runs if run["label"] == label]
            if known := [format_number(value) for value in subsets if value is not None]:
                parts.append(tags.small(f"between subsets ± {', '.join(known)}"))
        if metric in published.get(label, {}):
            parts.append(tags.small(f"published: {published[label][metric]}"))
        return tags.td(*parts)

    rows = [[label, *(cell(label, metric) for metric in metrics)] for label in labels]
    reference = results["untranslated"]
    cells = [format_number(reference[metric]) if metric in reference else "–" for metric in metrics]
    rows.append([tags.span("not translated", cls="no"), *cells])
    page.add(table(["configuration", *(f"{metric} {arrow(metric)}" for metric in metrics)], rows))
    page.add_text(
        "Below each mean the seeds' numbers, in the order of the seeds. The last row judges the source "
        "images as they are."
    )
    if published:
        page.add_text(f"Published: {results['published']['source']}")


def _add_costs(page: Page, results: Mapping[str, Any], labels: Sequence[str]) -> None:
    rows = []
    for label in labels:
        mine = [run for run in results["runs"] if run["label"] == label]
        networks = results["parameters"][label]
        each = ", ".join(f"{name} {format_millions(count)}" for name, count in networks.items() if count)
        memory = _over_seeds([run["memory"] and run["memory"] / 1e6 for run in mine])
        cells = [tags.td(format_millions(sum(networks.values())), tags.small(each))]
        cells += [_over_seeds([run["step_ms"] for run in mine]), memory]
        cells += [
            _over_seeds([run["images"] for run in mine]),
            _over_seeds([round(run["seconds"] / 60, 1) for run in mine]),
        ]
        rows.append([label, *cells])
    head = ["configuration", "parameters", "ms per step", "peak memory, MB"]
    page.add(table([*head, "images trained", "training, minutes"], rows))
    page.add_text(
        "Of several seeds the range. Parameters are those of all networks that are trained. Times are of the "
        "wall clock, waiting for data included, and so depend on what else the machine does; a step is the "
        "median of the training's log. Memory is that of tensors on a GPU, on a CPU of the whole process."
    )


def _over_seeds(values: Sequence[float | None]) -> str:
    """One number, or the range of several."""
    known = sorted({format_number(value) for value in values if value is not None}, key=float)
    return " to ".join(known[:1] + known[1:][-1:]) or "–"


def _add_receipts(page: Page, runs: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for run in runs:
        name = run["name"]
        files = {
            "numbers": f"results/{name}/test_latest/evaluation.json",
            "test images": f"results/{name}/test_latest/index.html",
            "numbers BtoA": f"results/{name}/test_latest_BtoA/evaluation.json",
            "test images BtoA": f"results/{name}/test_latest_BtoA/index.html",
            "options": f"runs/{name}/train_opt.txt",
            "training": f"runs/{name}/web/index.html",
            "losses": f"runs/{name}/loss_log.txt",
            "output": f"logs/{name}.log",
        }
        links = [
            tags.a(text, href=url(file)) for text, file in files.items() if (page.folder / file).is_file()
        ]
        spaced_out = [part for link in links for part in (link, " ")]
        rows.append([name, tags.td(*spaced_out), tags.td(tags.code(printable(f"train.py {run['train']}")))])
    page.add(table(["run", "files", "command"], rows))
    page.add_text("study.json holds all numbers of this page, with versions and hardware.")
    page.add_link("study.json", "study.json")


def _add_differences(page: Page, results: Mapping[str, Any]) -> None:
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
        page.add(tags.details(tags.summary(f"{count_pairs(found)} in {metric}"), table(head, rows)))


def _add_samples(
    page: Page, runs: Sequence[Mapping[str, Any]], count: int, folder: str, direction: str
) -> None:
    columns: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["numbers"]:
            columns.setdefault(run["label"], []).append(run)
    if not columns:
        return

    def images(run: Mapping[str, Any], domain: str) -> Path:
        return page.folder / "results" / run["name"] / folder / "images" / domain

    def cell(run: Mapping[str, Any], domain: str, name: Path, first: bool = True) -> tags.td:
        path = images(run, domain) / name
        kind = "source" if domain == "real_A" else "first" if first else ""
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
    if not names:
        return
    places = [(run, number == 0) for mine in columns.values() for number, run in enumerate(mine)]
    top = [tags.th(label, colspan=len(mine), cls="first") for label, mine in columns.items()]
    seeds = [
        tags.th(tags.small(f"seed {run['seed']}"), cls="first" if first else "") for run, first in places
    ]
    head = tags.thead(
        tags.tr(tags.th("source", cls="source"), *top, tags.th("a target", cls="first")),
        tags.tr(tags.th(cls="source"), *seeds),
    )
    grid = tags.table(head, cls="grid")
    for name in (names[index] for index in spaced(len(names), count)):
        made = [cell(run, "fake_B", name, first) for run, first in places]
        grid.add(tags.tr(cell(any_run, "real_A", name, False), *made, cell(any_run, "real_B", name)))
    page.add_header(f"The same test images, translated by every run, {direction}")
    page.add_text(
        "Evenly spaced in the order of their names, none picked. A target is a real image, not a pair."
    )
    page.add(tags.div(grid, cls="card wide"))


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


def format_millions(count: int) -> str:
    """11.4 M; below a million in thousands."""
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k"


def format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def spaced(total: int, count: int) -> list[int]:
    """`count` indices (all, if there are fewer) evenly spaced over `total`, without repeats."""
    count = min(total, count)
    return [index * total // count for index in range(count)]
