# SPDX-License-Identifier: Apache-2.0
"""Results of benchmarks: what is stored, and what is derived from it."""

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from benchmarks.lib import report

FILES = sorted(str(path.relative_to(report.RESULTS))[:-5] for path in report.RESULTS.rglob("*.json"))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of results, and a function that sets the commit of the next run."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "UNCOMMITTED", tmp_path / "uncommitted")

    def set_commit(commit):
        monkeypatch.setattr(report, "circumstances", lambda: {"command": "c", "commit": commit})

    set_commit("first")
    return set_commit


def test_rates_are_derived_and_not_stored(results):
    (row,) = report.save("a/b", [{"outcomes": "1101"}])
    assert (row["successes"], row["n"], row["rate"], row["wilson95"]) == (3, 4, 0.75, [0.3006, 0.9544])
    stored = json.loads((report.RESULTS / "a" / "b.json").read_text())
    assert stored["rows"] == [{"outcomes": "1101", "commit": "first"}]
    assert report.load("a/b")["rows"] == [row]
    assert report.percent(row) == "75.0 % (3/4, 30.1 to 95.4)"


def test_counts_stay_where_outcomes_were_not_kept(results):
    (row,) = report.save("a", [{"successes": 3, "n": 4}])
    assert row["rate"] == 0.75
    assert json.loads((report.RESULTS / "a.json").read_text())["rows"] == [
        {"successes": 3, "n": 4, "commit": "first"}
    ]


def test_rows_that_are_not_measured_again_stay_with_their_run(results):
    report.save("a", [{"variant": "x", "seed": 0, "ms": 1}, {"variant": "y", "seed": 0, "ms": 2}])
    results("second")
    rows = report.save("a", [{"variant": "x", "seed": 0, "ms": 3}], ("variant", "seed"), speed=[{"ms": 9}])
    assert [(row["variant"], row["ms"], row["commit"]) for row in rows] == [
        ("y", 2, "first"),
        ("x", 3, "second"),
    ]
    results("third")
    report.save("a", [{"variant": "y", "seed": 0, "ms": 4}], ("variant", "seed"))
    stored = report.load("a")
    assert [run["commit"] for run in stored["runs"]] == ["second", "third"]
    assert stored["speed"] == [{"ms": 9, "commit": "second"}]


def test_of_a_path_outside_the_repository_only_the_name_is_written(results):
    paths = ["/tmp/a/checkpoint", "outputs/tmp/here", "/home/me/last"]
    settings = {"policies": paths, "text": "--policies /tmp/a/b /tmp/c --steps 3"}
    report.save("a", [{"ms": 1}], settings={**settings, "out": Path("outputs"), "figure": Path("a.png")})
    (run,) = report.load("a")["runs"]
    assert run["settings"].keys() == settings.keys()  # not where results and figures go
    assert run["settings"]["policies"] == ["checkpoint", "outputs/tmp/here", "last"]
    assert run["settings"]["text"] == "--policies b c --steps 3"


def test_results_of_uncommitted_code_are_kept_apart(results):
    results(None)
    report.save("a", [{"seed": 0, "outcomes": "1"}], ("seed",))
    rows = report.save("a", [{"seed": 1, "outcomes": "0"}], ("seed",))
    assert [row["outcomes"] for row in rows] == ["1", "0"]
    assert not report.RESULTS.exists()
    assert (report.UNCOMMITTED / "a.json").is_file()


def test_pages_and_results_may_differ_from_the_commit(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=tmp_path, check=True
        )

    git("init", "-q")
    for name in ("code.py", "docs/page.md", "benchmarks/results/a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs/page.md").write_text("2")
    (tmp_path / "benchmarks/results/a.json").write_text("2")
    assert re.fullmatch(r"[0-9a-f]{7,}", report.circumstances()["commit"])
    (tmp_path / "code.py").write_text("2")
    assert report.circumstances()["commit"] is None


@pytest.mark.parametrize("name", FILES)
def test_stored_results(name):
    text = (report.RESULTS / f"{name}.json").read_text()
    tables = json.loads(text)
    assert text == report.dump(tables)  # one row per line
    assert not re.search(r"/(home|root|work|Users|tmp)/", text)
    runs = {run["commit"] for run in tables.pop("runs")}
    for row in (row for rows in tables.values() for row in rows):
        assert re.fullmatch(r"[0-9a-f]{7,}", row["commit"])
        assert row["commit"] in runs
        assert set(row.get("outcomes", "0")) <= {"0", "1"}
        assert "rate" not in row
        assert "wilson95" not in row


def test_stored_results_name_commits_of_this_repository():
    commits = {row["commit"] for name in FILES for row in report.load(name)["rows"]}
    shallow = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], capture_output=True, text=True)
    if shallow.stdout.strip() != "false":
        pytest.skip("needs the repository's history")
    for commit in commits:
        assert subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"]).returncode == 0, commit


def test_processes_that_save_at_the_same_time_lose_nothing(results):
    seeds = range(40)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: report.save("a", [{"seed": seed}], ("seed",)), seeds))
    assert sorted(row["seed"] for row in report.load("a")["rows"]) == list(seeds)
    assert [path.name for path in report.RESULTS.iterdir()] == ["a.json"]
