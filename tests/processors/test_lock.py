# SPDX-License-Identifier: Apache-2.0
"""Ownership of a path: refused to a second process with the owner's pid, released with a killed process."""

import os
import signal
import subprocess
import sys

import pytest

from lerobot_processor_so101.lock import Lock, owning

HOLD = """
import sys, time
from lerobot_processor_so101.lock import Lock

lock = Lock(sys.argv[1])
print("ready", flush=True)
time.sleep(60)
"""


def test_a_second_owner_is_refused_with_the_pid_of_the_first(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with owning(tmp_path), pytest.raises(BlockingIOError, match=rf"in use by process {os.getpid()}\b"):
        Lock(tmp_path / "link")
    Lock(tmp_path).release()


def test_a_killed_owner_releases_it(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    with pytest.raises(BlockingIOError, match=rf"in use by process {owner.pid}\b"):
        Lock(tmp_path)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    Lock(tmp_path).release()
