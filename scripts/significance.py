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
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import ttest_ind

LEVEL = 0.05
RULE = (
    "A difference exceeds the spread between seeds if Welch's t test on the seeds' numbers (two-sided, "
    f"unequal spreads allowed) gives p < {LEVEL} after Holm's correction over all pairs of that metric. If "
    f"only the uncorrected p is below {LEVEL}, it is called a hint; all other differences are within the "
    "spread. Metrics are not corrected for one another."
)
BEYOND, HINT, WITHIN = "exceeds the spread", "hint", "within the spread"


def summarise(values: Sequence[float]) -> dict[str, float | None]:
    """The "mean" of one number per seed, and their sample deviation "std" (n - 1; None for one seed)."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}


def differences(values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Every pair of configurations with at least two seeds each, in the order given.

    Args:
        values: configuration -> one number per seed of one metric.

    Returns:
        Of each pair its names "first" and "second", the "difference" of their means, Welch's "p", "p_holm",
        corrected for all pairs, and the "verdict".
    """
    known = {name: numbers for name, numbers in values.items() if len(numbers) > 1}
    found = []
    for (first, a), (second, b) in combinations(known.items(), 2):
        gap = float(np.mean(a) - np.mean(b))
        if np.ptp(a) or np.ptp(b):
            p = float(ttest_ind(a, b, equal_var=False).pvalue)
        else:  # without any spread, unequal means differ with certainty
            p = 0.0 if gap else 1.0
        found.append({"first": first, "second": second, "difference": gap, "p": p})
    for pair, p_holm in zip(found, holm([pair["p"] for pair in found]), strict=True):
        verdict = BEYOND if p_holm < LEVEL else HINT if pair["p"] < LEVEL else WITHIN
        pair |= {"p_holm": p_holm, "verdict": verdict}
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


def study_results(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summaries and differences of every metric, ready for JSON.

    Args:
        runs: each with "label" (the configuration) and "numbers" ({metric: number} or None).
    """
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for metric, value in (run["numbers"] or {}).items():
            if math.isfinite(value):
                values.setdefault(metric, {}).setdefault(run["label"], []).append(value)
    summaries = {
        metric: {label: summarise(numbers) for label, numbers in by_label.items()}
        for metric, by_label in values.items()
    }
    compared = {metric: differences(by_label) for metric, by_label in values.items()}
    return {"summaries": summaries, "differences": compared}
