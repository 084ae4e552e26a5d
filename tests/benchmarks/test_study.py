# SPDX-License-Identifier: Apache-2.0
"""What studies compare, and what they keep of earlier runs."""

from benchmarks.study import compare, with_earlier


def rows(arm, **by_seed):
    return [
        {
            "arm": arm,
            "seed": int(seed[1:]),
            "per_start": found,
            "rate": 0.5,
            "wilson95": [0, 1],
            "successes": 1,
            "n": 2,
        }
        for seed, found in by_seed.items()
    ]


def test_arms_are_compared_over_the_seeds_that_both_have():
    made = rows("a", s0=[1, 1], s1=[0, 0]) + rows("b", s0=[1, 0]) + rows("c", s2=[1, 1])
    (gain,) = compare(made, (), [("a", "b"), ("a", "c")])
    assert gain["seeds"] == [0]
    assert gain["gain"] == 0.5


def test_earlier_rows_stay_unless_they_are_made_anew():
    before = {"rows": [{"arm": "a", "seed": 0, "rate": 1}, {"arm": "b", "seed": 0, "rate": 2}]}
    merged = with_earlier(before, [{"arm": "a", "seed": 0, "rate": 3}], ("arm", "seed"))
    assert [(row["arm"], row["rate"]) for row in merged] == [("b", 2), ("a", 3)]
    assert "commit" in merged[1]
