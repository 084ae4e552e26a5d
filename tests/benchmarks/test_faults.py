# SPDX-License-Identifier: Apache-2.0
"""The benchmark of faults: what it keeps of earlier runs, and how it ends one that takes too long."""

import json
import signal
from types import SimpleNamespace

import pytest
from benchmarks import faults, report

ROW = {
    "fault": "jammed joint",
    "happened": True,
    "error": "",
    "log": [],
    "finished_episodes": 2,
    "loads": True,
    "end": "limp",
    "longest_call_s": 0.1,
    "named": None,
}


def test_a_robots_circumstances_outlive_the_other_robots_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for robot in ("so101_guarded", "so101_follower"):
        monkeypatch.setattr(faults, "circumstances", lambda robot=robot: {"command": robot})
        faults.report([ROW], robot)
    kept = json.loads((tmp_path / "faults.json").read_text())
    for robot in ("so101_guarded", "so101_follower"):
        assert kept["circumstances"][robot] == {"command": robot}
        assert kept[robot]["runs"] == 1


def test_an_alarm_does_not_ring_inside_of_the_arm():
    clock = SimpleNamespace(advancing=True)
    with faults.limited(clock):
        signal.raise_signal(signal.SIGALRM)  # a hand, which is a generator, would end with the error
        clock.advancing = False
        with pytest.raises(TimeoutError, match="a run took longer"):
            signal.raise_signal(signal.SIGALRM)
