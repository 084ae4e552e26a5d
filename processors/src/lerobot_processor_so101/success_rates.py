# SPDX-License-Identifier: Apache-2.0
"""Success rates with intervals, and comparisons of policies at the same initial states.

The outcomes of a training are a string with a character per episode, 1 for success.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a rate."""
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def percent(successes: int, n: int) -> str:
    """Format a rate with its Wilson interval: 95.0 % (190/200, 91.0 to 97.3)."""
    low, high = wilson(successes, n)
    return f"{100 * successes / n:.1f} % ({successes}/{n}, {100 * low:.1f} to {100 * high:.1f})"


def with_interval(mean: float, low: float, high: float, sign: str = "") -> str:
    """Format a mean and its interval: 78.0 % (71.3 to 84.5); with sign "+": +3.5 % (-1.0 to +8.0)."""
    texts = [f"{round(100 * value, 1) + 0.0:{sign}.1f}" for value in (mean, low, high)]  # no "-0.0"
    return f"{texts[0]} % ({texts[1]} to {texts[2]})"


def hierarchical_interval(
    first: Sequence[str], second: Sequence[str] | None = None, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Return the mean success of a policy, or its gain over another, and the ends of its 95 % interval.

    The bootstrap resamples training seeds, each policy's by themselves, and initial states, the same for both
    policies. With few seeds it is somewhat too narrow: it resamples the seeds that are there.

    Args:
        first, second: outcomes at the same initial states, one string per training seed.
        resamples: number of bootstrap samples.
    """
    rng = np.random.default_rng(0)
    n_states = len(first[0])
    # how often each initial state, and each training, is in a resample
    states = rng.multinomial(n_states, np.full(n_states, 1 / n_states), resamples) / n_states
    mean, resampled = 0.0, np.zeros(resamples)
    for sign, runs in ((1, first), (-1, second)):
        if runs:
            outcomes, n_seeds = np.array([list(map(int, run)) for run in runs], float), len(runs)  # (S, N)
            seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), resamples) / n_seeds
            resampled += sign * np.einsum("bs,sn,bn->b", seeds, outcomes, states, optimize=True)
            mean += sign * float(outcomes.mean())
    low, high = np.quantile(resampled, (0.025, 0.975))
    return mean, float(low), float(high)


def mcnemar(first: str, second: str) -> tuple[int, int, float]:
    """Compare two trainings by McNemar's exact test of their outcomes at the same initial states.

    Returns:
        The numbers of states where only the first, and only the second, succeeded, and the p-value.
    """
    pairs = list(zip(first, second, strict=True))
    only_first, only_second = pairs.count(("1", "0")), pairs.count(("0", "1"))
    different = only_first + only_second
    p = binomtest(only_first, different).pvalue if different else 1.0
    return only_first, only_second, float(p)


def detectable_difference(n: int, differing: float) -> float:
    """Return the smallest true difference that McNemar's test at 5 % detects with a power of 80 %.

    The normal approximation of Connor (1987, Biometrics 43). 1 if there is none.

    Args:
        n: number of initial states.
        differing: share of states where exactly one of the two policies succeeds.
    """
    level, power = norm.ppf(1 - 0.05 / 2), norm.ppf(0.8)

    def surplus(difference: float) -> float:
        spread = max(differing - difference**2, 0.0)
        return difference * n**0.5 - level * differing**0.5 - power * spread**0.5

    return brentq(surplus, 0.0, differing) if differing > 0 and surplus(differing) > 0 else 1.0


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a Markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
