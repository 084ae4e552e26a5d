# SPDX-License-Identifier: Apache-2.0
"""A short version of the benchmark of killed recordings, with LeRobot's commands and ours."""

import pytest
from benchmarks.safety.kills import COMMANDS, stopped


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("stop", "number"), [("SIGKILL", 5), ("full disk", 1)])
def test_no_finished_episode_is_lost(small_disk, command, stop, number):
    """`small_disk` skips the test where file systems cannot be mounted."""
    result = stopped(command, stop, number)
    assert result["lost"] == []
    assert command == "lerobot-record" or result["resumed"]
