# SPDX-License-Identifier: Apache-2.0
"""Ownership of a path: refused to a second process with the owner's pid, released with a killed process."""

import os

import pytest

from lerobot_processor_so101.lock import Lock, owning


def test_a_second_owner_is_refused_with_the_pid_of_the_first(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with owning(tmp_path), pytest.raises(BlockingIOError, match=rf"in use by process {os.getpid()}\b"):
        Lock(tmp_path / "link")
    Lock(tmp_path).release()


def test_a_killed_owner_releases_it(tmp_path, own_elsewhere):
    owner = own_elsewhere(tmp_path)
    with pytest.raises(BlockingIOError, match=rf"in use by process {owner.pid}\b"):
        Lock(tmp_path)
    owner.kill()
    owner.join()
    Lock(tmp_path).release()
