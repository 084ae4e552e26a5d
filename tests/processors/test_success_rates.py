# SPDX-License-Identifier: Apache-2.0
"""Success rates, their intervals, and comparisons of policies."""

import numpy as np
import pytest
from scipy.stats import binomtest

from lerobot_processor_so101.success_rates import (
    detectable_difference,
    hierarchical_interval,
    markdown_table,
    mcnemar,
    percent,
    wilson,
    with_interval,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (3, 7), (190, 200), (200, 200)])
def test_the_interval_is_wilsons(successes, n):
    # Wilson 1927: the rates whose normal test at 5 % does not reject the observed one
    z, rate = 1.959964, successes / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (rate * (1 - rate) / n + z**2 / (4 * n**2)) ** 0.5
    assert wilson(successes, n) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_rates_are_written_in_percent():
    assert percent(3, 4) == "75.0 % (3/4, 30.1 to 95.4)"
    assert with_interval(0.78, 0.713, 0.845) == "78.0 % (71.3 to 84.5)"
    assert with_interval(-1e-17, 0.0, 0.0, "+") == "+0.0 % (+0.0 to +0.0)"
    assert with_interval(0.035, -0.01, 0.08, "+") == "+3.5 % (-1.0 to +8.0)"


def test_a_hierarchical_interval_has_the_spread_of_seeds_and_of_states():
    """Against the standard error of a mean over independent seeds and states."""
    # seeds differ and states do not: the interval is that of the mean of three seeds
    by_seed = hierarchical_interval(["1" * 200, "1" * 200, "0" * 200])
    assert by_seed == pytest.approx((2 / 3, 0.0, 1.0))
    # states differ and seeds do not: the interval is the binomial one
    mean, low, high = hierarchical_interval(["10" * 100] * 3)
    assert mean == 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * (0.25 / 200) ** 0.5, abs=0.006)
    # a gain is paired over states
    assert hierarchical_interval(["10" * 100] * 3, ["00" * 100] * 3)[0] == 0.5
    assert hierarchical_interval(["10" * 100] * 3, ["10" * 100] * 3) == pytest.approx((0.0, 0.0, 0.0))


def test_mcnemar_counts_only_states_that_differ():
    first, second = "1" * 90 + "1" * 8 + "0" * 2, "1" * 90 + "0" * 8 + "1" * 2
    only_first, only_second, p = mcnemar(first, second)
    assert (only_first, only_second) == (8, 2)
    assert p == pytest.approx(binomtest(2, 10).pvalue)
    assert mcnemar("110", "110") == (0, 0, 1.0)


@pytest.mark.parametrize(("n", "differing"), [(200, 0.1), (200, 0.3), (1000, 0.2)])
def test_a_detectable_difference_is_detected_four_times_of_five(n, differing):
    difference = detectable_difference(n, differing)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(
        n, [(differing + difference) / 2, (differing - difference) / 2, 1 - differing], 4000
    )
    # the normal test that the formula is for; the exact one detects a little less
    z = (drawn[:, 0] - drawn[:, 1]) / np.sqrt(np.maximum(drawn[:, 0] + drawn[:, 1], 1))
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.03)


def test_no_difference_is_detectable_where_policies_never_differ_or_hardly_ever():
    assert detectable_difference(200, 0.0) == 1.0
    assert detectable_difference(10, 0.05) == 1.0


def test_columns_of_a_table_are_aligned():
    assert markdown_table(["a", "long name"], [[1, "x"]]) == (
        "| a | long name |\n|---|-----------|\n| 1 | x         |"
    )
