"""The statistics of a study: means and spreads over seeds, and which differences exceed them.

A single number per configuration says little, since another seed gives another one. Each configuration is
therefore trained with several seeds. Two configurations are compared by Welch's t test, which sets the
difference of their means against the spread between seeds and allows unequal spreads. As many pairs are
compared, p is corrected by Holm's method: if all configurations were alike, at most one study in twenty would
declare any pair of a metric different.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import ttest_ind_from_stats

LEVEL = 0.05
RULE = (
    "A difference exceeds the spread between seeds if Welch's t test on the seeds' numbers (two-sided, "
    f"unequal spreads allowed) gives p < {LEVEL} after Holm's correction over all pairs of that metric. If "
    f"only the uncorrected p is below {LEVEL}, it is called a hint; all other differences are within the "
    "spread. Metrics are not corrected for one another."
)
BEYOND, HINT, WITHIN = "exceeds the spread", "hint", "within the spread"


class Summary(NamedTuple):
    """The numbers of one configuration: mean, sample standard deviation (n - 1; NaN for one seed), count."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Difference:
    """Two configurations in one metric.

    difference: mean of `first` minus mean of `second`.
    in_spreads: its size in pooled standard deviations.
    p: of Welch's t test; p_holm: corrected for the number of pairs.
    """

    first: str
    second: str
    difference: float
    in_spreads: float
    t: float
    p: float
    p_holm: float = math.nan

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
    """Every pair of configurations with at least two seeds each, in the order given.

    Args:
        values: configuration -> one number per seed of one metric.
    """
    known = {name: summarise(numbers) for name, numbers in values.items() if len(numbers) > 1}
    found = []
    for (first, a), (second, b) in combinations(known.items(), 2):
        gap, spread = a.mean - b.mean, _pooled(a, b)
        if spread:
            t, p = ttest_ind_from_stats(a.mean, a.std, a.count, b.mean, b.std, b.count, equal_var=False)
            found.append(Difference(first, second, gap, abs(gap) / spread, float(t), float(p)))
        else:  # without any spread, unequal means differ with certainty
            t, p = (math.copysign(math.inf, gap), 0.0) if gap else (0.0, 1.0)
            found.append(Difference(first, second, gap, abs(t), t, p))
    corrected = holm([pair.p for pair in found])
    return [replace(pair, p_holm=p_holm) for pair, p_holm in zip(found, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of m p-values, in their order.

    The k-th smallest is multiplied by m - k + 1, to at most 1 and at least the corrected one before it.
    """
    corrected, least = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = least
    return corrected


def _pooled(a: Summary, b: Summary) -> float:
    squares = (a.count - 1) * a.std**2 + (b.count - 1) * b.std**2
    return math.sqrt(squares / (a.count + b.count - 2))


def study_results(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summaries and differences of every metric, ready for JSON.

    Args:
        runs: each with "label" (the configuration) and "numbers" ({metric: number} or None).
    """
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for metric, value in (run["numbers"] or {}).items():
            if value is not None and math.isfinite(value):
                values.setdefault(metric, {}).setdefault(run["label"], []).append(value)
    summaries, compared = {}, {}
    for metric, by_label in values.items():
        summaries[metric] = {label: summarise(numbers)._asdict() for label, numbers in by_label.items()}
        compared[metric] = [asdict(pair) | {"verdict": pair.verdict} for pair in differences(by_label)]
    return {"summaries": summaries, "differences": compared, "rule": RULE}
