"""The statistics and the page of a study: images of every run, means and spreads, differences and costs.

A single number per configuration says little, since another seed gives another one. Configurations are
compared by Welch's t test, which sets the difference of their means against the spread between seeds.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from dominate import tags
from scipy.stats import ttest_ind

from scripts.judging import higher_is_better
from util.pages import Page, table, url

LEVEL = 0.05
RULE = (
    "A difference exceeds the spread between seeds if Welch's t test on the seeds' numbers (two-sided, "
    f"unequal spreads allowed) gives p < {LEVEL} after Holm's correction over all pairs of that metric. "
    "Metrics are not corrected for one another."
)
Rows = Sequence[Mapping[str, Any]]  # of runs, as study.json has them


def study_results(runs: Rows) -> dict[str, Any]:
    """Of every metric "summaries" (mean, sample deviation, None for one seed) and "differences"."""
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for metric, value in (run["numbers"] or {}).items():
            if math.isfinite(value):
                values.setdefault(metric, {}).setdefault(run["label"], []).append(value)

    def summary(of: Sequence[float]) -> dict[str, float | None]:
        return {"mean": float(np.mean(of)), "std": float(np.std(of, ddof=1)) if len(of) > 1 else None}

    summaries = {name: {label: summary(of) for label, of in by.items()} for name, by in values.items()}
    return {"summaries": summaries, "differences": {metric: differences(of) for metric, of in values.items()}}


def differences(values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Every pair of configurations, given as one number per seed, with at least two seeds each.

    Of each pair its names "first" and "second", the "difference" of their means, Welch's "p", and "p_holm",
    corrected for all pairs: if all configurations were alike, one study in twenty would have one below 0.05.
    """
    found = []
    for (first, a), (second, b) in combinations(values.items(), 2):
        if min(len(a), len(b)) > 1:
            gap = float(np.mean(a) - np.mean(b))
            p = float(ttest_ind(a, b, equal_var=False).pvalue) if gap else 1.0
            found.append({"first": first, "second": second, "difference": gap, "p": p})
    for pair, p_holm in zip(found, holm([pair["p"] for pair in found]), strict=True):
        pair["p_holm"] = p_holm
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of m p-values, in their order.

    The k-th smallest is multiplied by m - k + 1, to at most 1 and at least the corrected one before it.
    """
    corrected, least = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = least
    return corrected


def write_page(
    out: Path, title: str, results: Mapping[str, Any], facts: Mapping[str, str], samples: int
) -> None:
    """Write `out`/index.html from what study.json holds, with `facts` in its head and some test images."""
    page = Page(out, title)
    page.add_facts(facts)
    for run in results["runs"]:
        if run["failure"]:
            page.add_text(f"Failed: {run['name']}: {run['failure']}")
    shown = [run for run in results["runs"] if run["numbers"]]
    for folder, direction in (("test_latest", "AtoB"), ("test_latest_BtoA", "BtoA")):
        _add_samples(page, shown, samples, folder, direction)
    _add_numbers(page, results)
    page.add_header("Which differences exceed the spread between seeds")
    page.add_text(RULE)
    pairs = [(metric, pair) for metric, of in results["differences"].items() for pair in of]
    rows = []
    for metric, pair in pairs:
        if pair["p_holm"] < LEVEL:
            numbers = (f"{pair[name]:.3g}" for name in ("difference", "p", "p_holm"))
            rows.append([metric, f"{pair['first']} − {pair['second']}", *numbers])
    if rows:
        page.add(table(["metric", "pair", "difference", "p", "p, Holm"], rows))
    within = f"{len(pairs) - len(rows)} of {len(pairs)} pairs are within the spread"
    page.add_text(f"{within}; study.json lists them all.")
    page.add_link("study.json", "study.json")
    page.save()


def _add_samples(page: Page, runs: Rows, count: int, folder: str, direction: str) -> None:
    """Test images in rows, runs in columns, between the source and a target."""
    source, target = direction.split("to")

    def images(run: Mapping[str, Any], domain: str) -> Path:
        found = page.folder / "results" / run["name"] / folder / "images"
        if (found / f"to_{target}").is_dir():  # of a model with many domains
            return found / domain.replace("fake_B", f"to_{target}") / source
        return found / domain

    def image(run: Mapping[str, Any], domain: str, name: Path) -> tags.html_tag | str:
        path = images(run, domain) / name
        if not path.is_file():
            return ""
        file = url(path.relative_to(page.folder).as_posix())
        return tags.a(tags.img(src=file, alt=f"{domain} {name}", width=70, loading="lazy"), href=file)

    sources = images(runs[0], "real_A") if runs else page.folder / "none"
    names = sorted(path.relative_to(sources) for path in sources.rglob("*.png"))
    count = min(count, len(names))
    chosen = [names[index * len(names) // count] for index in range(count)]
    if chosen:
        page.add_header(f"The same test images, translated by every run, {direction}")
        page.add_text("Evenly spaced in the order of their names. A target is a real image, not a pair.")
        columns = [(runs[0], "real_A"), *((run, "fake_B") for run in runs), (runs[0], "real_B")]
        head = ["source", *(f"{run['label']}, seed {run['seed']}" for run in runs), "a target"]
        page.add(table(head, [[image(*column, name) for column in columns] for name in chosen]))


def _add_numbers(page: Page, results: Mapping[str, Any]) -> None:
    """A row for each configuration: its numbers, with the published ones, and what it cost."""
    runs, summaries, published = results["runs"], results["summaries"], results["published"]["numbers"]
    metrics = list(dict.fromkeys([*summaries, *(metric for of in published.values() for metric in of)]))

    def cell(label: str, mine: Rows, metric: str) -> tags.td:
        parts: list[Any] = ["–"]
        if label in summaries.get(metric, {}):
            seeds = [run["numbers"][metric] for run in mine if metric in (run["numbers"] or {})]
            of_seeds = tags.small(", ".join(map(format_number, seeds)))
            parts = [format_summary(**summaries[metric][label]), of_seeds]
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
        "Below each mean the seeds' numbers, in their order. The last row judges the source images as they "
        "are. Minutes are of the wall clock and depend on what else the machine does."
    )
    if published:
        page.add_text(f"Published: {results['published']['source']}")


def format_summary(mean: float, std: float | None) -> str:
    """Mean ± spread, to two digits of the spread."""
    if not std:
        return format_number(mean)
    digits = max(0, 1 - math.floor(math.log10(std)))
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def format_number(value: float | None) -> str:
    """Four significant digits, without an exponent for large numbers."""
    if value is None:
        return "–"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
