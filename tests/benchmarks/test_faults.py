# SPDX-License-Identifier: Apache-2.0
"""The benchmark of faults: what it keeps of earlier runs, and how it ends one that takes too long."""

import signal
import time
from types import SimpleNamespace

import pytest
from benchmarks.lib import report
from benchmarks.safety import faults

RUN = {
    "fault": "jammed joint",
    "happened": True,
    "error": "",
    "log": [],
    "finished_episodes": 2,
    "loads": True,
    "end": "limp",
    "longest_call_s": 0.1,
    "fastest": 150.0,
    "named": None,
}


def test_a_robots_rows_and_run_outlive_the_other_robots_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for robot in ("so101_guarded", "so101_follower"):
        run = {"command": robot, "commit": f"commit of {robot}"}
        monkeypatch.setattr(report, "circumstances", lambda run=run: run)
        faults.report([RUN, {**RUN, "happened": False}], robot)
    stored = report.load("safety/faults")
    assert [run["command"] for run in stored["runs"]] == ["so101_guarded", "so101_follower"]
    counted = {(row["robot"], row["fault"]): (row["runs"], row["commit"]) for row in stored["rows"]}
    assert counted == {
        (robot, fault): (1, f"commit of {robot}")
        for robot in ("so101_guarded", "so101_follower")
        for fault in ("all", "jammed joint")
    }


def test_an_alarm_does_not_ring_inside_the_arm():
    clock = SimpleNamespace(advancing=True)

    def leave_the_arm():
        clock.advancing = False
        time.sleep(60)  # it rings again

    with faults.limited(clock):
        # a leader's motion, which is a generator, would end with the error
        signal.raise_signal(signal.SIGALRM)
        with pytest.raises(TimeoutError, match="a run took longer"):
            leave_the_arm()
