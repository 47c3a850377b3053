"""What a study of several configurations and seeds can honestly say: means, spreads, and which differences exceed them.

A single number per configuration says nothing, as another seed gives another one. So each configuration is trained with
several seeds, and two configurations are told apart by Welch's t test, which sets the difference of their means against the
spread between seeds and does not suppose the spreads alike. As many pairs are looked at, p is corrected by Holm's method: were all
configurations alike, any pair of a metric would be declared different in at most one study of twenty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import ttest_ind_from_stats

LEVEL = 0.05
RULE = (
    "Two configurations differ by more than the spread between seeds where Welch's t test on the seeds' numbers (two-sided, "
    f"spreads not supposed alike) gives p < {LEVEL} after Holm's correction over all pairs of that metric. Where only the "
    f"uncorrected p is below {LEVEL}, the difference is called a hint; all others are within the spread. Metrics are "
    "not corrected for one another."
)
BEYOND, HINT, WITHIN = "exceeds the spread", "hint", "within the spread"


@dataclass(frozen=True)
class Summary:
    """The numbers of one configuration: mean, sample standard deviation (n - 1; NaN for one seed) and count."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Difference:
    """Two configurations in one metric.

    difference: mean of `first` minus mean of `second`. in_spreads: its size in pooled standard deviations. p: of Welch's t test;
    p_holm: the same, corrected for the number of pairs.
    """

    first: str
    second: str
    difference: float
    in_spreads: float
    t: float
    p: float
    p_holm: float

    @property
    def verdict(self) -> str:
        return BEYOND if self.p_holm < LEVEL else HINT if self.p < LEVEL else WITHIN


def summarise(values: Sequence[float]) -> Summary:
    """Mean and spread of one number per seed. `ValueError` for none."""
    if not len(values):
        raise ValueError("no values to summarise")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Summary(float(np.mean(values)), std, len(values))


def differences(values: Mapping[str, Sequence[float]]) -> list[Difference]:
    """Every pair of configurations that have at least two seeds each, in the order given.

    Args:
        values: configuration -> one number per seed of one metric.
    """
    known = {name: summarise(numbers) for name, numbers in values.items() if len(numbers) > 1}
    pairs = list(combinations(known, 2))
    tests = [_welch(known[first], known[second]) for first, second in pairs]
    corrected = holm([p for _, p in tests])
    found = []
    for (first, second), (t, p), p_holm in zip(pairs, tests, corrected, strict=True):
        gap, pooled = known[first].mean - known[second].mean, _pooled(known[first], known[second])
        in_spreads = abs(gap) / pooled if pooled else math.inf if gap else 0.0
        found.append(Difference(first, second, gap, in_spreads, t, p, p_holm))
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: with m tests, the k-th smallest p times m - k + 1, at most 1 and never below a smaller one's."""
    corrected, least = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = least
    return corrected


def _welch(a: Summary, b: Summary) -> tuple[float, float]:
    """t and p; without any spread a difference is certain, and equality is equality."""
    if a.std == b.std == 0:
        return (0.0, 1.0) if a.mean == b.mean else (math.copysign(math.inf, a.mean - b.mean), 0.0)
    t, p = ttest_ind_from_stats(a.mean, a.std, a.count, b.mean, b.std, b.count, equal_var=False)
    return float(t), float(p)


def _pooled(a: Summary, b: Summary) -> float:
    squares = (a.count - 1) * a.std**2 + (b.count - 1) * b.std**2
    return math.sqrt(squares / (a.count + b.count - 2))


def study_results(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summaries and differences of every metric, ready for JSON.

    Args:
        runs: each with "label" (the configuration), "seed" and "numbers" ({metric: number}, or None where there are none yet).
    """
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for metric, value in (run["numbers"] or {}).items():
            if value is not None and math.isfinite(value):
                values.setdefault(metric, {}).setdefault(run["label"], []).append(value)
    summaries = {
        metric: {label: asdict(summarise(v)) for label, v in rows.items()} for metric, rows in values.items()
    }
    compared = {
        metric: [asdict(found) | {"verdict": found.verdict} for found in differences(rows)]
        for metric, rows in values.items()
    }
    return {"summaries": summaries, "differences": compared, "rule": RULE}
