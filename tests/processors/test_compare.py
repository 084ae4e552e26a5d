# SPDX-License-Identifier: Apache-2.0
"""`so101-compare`: rates and differences of evaluations, and what it refuses."""

import json
import re

import pytest

from lerobot_processor_so101.compare import main

TASK = "lift_cube-clean"


@pytest.fixture
def evaluation(tmp_path):
    """Writes what lerobot-eval would."""

    def write(name: str, outcomes: str, task: str = TASK) -> str:
        path = tmp_path / name / "eval_info.json"
        path.parent.mkdir()
        metrics = {"successes": [outcome == "1" for outcome in outcomes]}
        path.write_text(json.dumps({"per_task": [{"task_group": task, "metrics": metrics}]}))
        return str(path)

    return write


@pytest.fixture
def compare(monkeypatch, capsys):
    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["so101-compare", *arguments])
        main()
        return capsys.readouterr().out

    return run


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_two_policies_are_compared_state_by_state(compare, evaluation):
    both = evaluation("a", "1" * 60 + "0" * 40), evaluation("b", "1" * 90 + "0" * 10)
    lines = compare(*both).splitlines()
    assert cells(lines[2]) == ["a", TASK, "1", "100", "60.0 % (60/100, 50.2 to 69.1)"]
    _, _, difference, only, p, detectable = cells(lines[-1])
    assert cells(lines[-1])[0] == "b over a"
    assert difference.startswith("+30.0 % (+21.0 to +39.0)")
    assert (only, p) == ("30, 0", "0.000")
    assert detectable == "15.2 %"  # (1.960 * 0.548 + 0.842 * 0.526) / 10


def test_training_seeds_are_one_policy_with_a_hierarchical_interval(compare, evaluation, tmp_path):
    for seed, outcomes in enumerate(("1" * 20, "1" * 20, "0" * 20)):
        evaluation(f"a_{seed}", outcomes)
    lines = compare(f"ours={tmp_path}/a_*/eval_info.json").splitlines()
    assert cells(lines[-1]) == ["ours", TASK, "3", "20", "66.7 % (0.0 to 100.0)"]


def test_the_rates_are_drawn(compare, evaluation, tmp_path):
    pytest.importorskip("matplotlib")
    compare(evaluation("a", "1100"), evaluation("b", "1110"), f"--plot={tmp_path / 'rates.png'}")
    assert (tmp_path / "rates.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda write, folder: f"{folder}/nothing/eval_info.json", "found no file .*nothing"),
        (lambda write, folder: write("b", "11"), "found {'lift_cube-clean': 2} episodes, expected .* 4"),
        (lambda write, folder: write("b", "1111", "sort_cubes-clean"), "found {'sort_cubes-clean': 4}"),
        (lambda write, folder: not_an_evaluation(folder), "found no `per_task` with successes"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    compare, evaluation, tmp_path, capsys, found, message
):
    with pytest.raises(SystemExit) as exit:
        compare(evaluation("a", "1100"), found(evaluation, tmp_path))
    printed = capsys.readouterr().err
    assert exit.value.code == 2
    assert printed.count("\n") == 1
    assert re.search(message, printed)


def not_an_evaluation(folder):
    path = folder / "info.json"
    path.write_text('{"fps": 30}')
    return str(path)
