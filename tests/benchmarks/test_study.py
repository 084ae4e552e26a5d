# SPDX-License-Identifier: Apache-2.0
"""What studies compare."""

import pytest
from benchmarks.lib.report import derive
from benchmarks.lib.study import Study, compare, paired_gain


def rows(variant, **by_seed):
    return [
        derive({"task": "t", "variant": variant, "seed": int(seed[1:]), "outcomes": outcomes})
        for seed, outcomes in by_seed.items()
    ]


def test_variants_are_compared_over_the_seeds_that_both_have():
    measured = rows("a", s0="11", s1="00") + rows("b", s0="10") + rows("c", s2="11")
    (gain,) = compare(measured, [("a", "b"), ("a", "c")])
    assert gain["seeds"] == [0]
    assert gain["gain"] == 0.5


def test_all_trainings_count_where_that_is_wanted():
    measured = rows("a", s0="11", s1="00") + rows("b", s0="10")
    (gain,) = compare(measured, [("a", "b")], all_seeds=True)
    assert gain["gain"] == 0.0


def test_variants_of_other_tasks_are_not_compared():
    other = [{**row, "task": "u"} for row in rows("b", s0="10")]
    assert compare(rows("a", s0="11") + other, [("a", "b")]) == []


def test_a_gain_is_that_of_the_mean_over_seeds_per_initial_state():
    gain = paired_gain(["110", "100"], ["000"])
    assert gain["gain"] == 0.5
    assert gain["bootstrap95"][0] <= 0.5 <= gain["bootstrap95"][1]
    assert paired_gain(["11"], ["00"]) == {"gain": 1.0, "bootstrap95": [1.0, 1.0]}


def test_a_step_is_not_repeated_once_it_has_succeeded(tmp_path):
    study, done = Study(tmp_path, None), tmp_path / "result"
    count = (
        "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text(f'{p.exists() and p.read_text()}1')"
    )
    for _ in range(2):
        assert study.step("count", ["python", "-c", count, str(done)], done) == done
    assert done.read_text() == "False1"
    with pytest.raises(SystemExit, match=r"exit code 3.*fails\.log"):
        study.step("fails", ["python", "-c", "raise SystemExit(3)"], tmp_path / "nothing")
