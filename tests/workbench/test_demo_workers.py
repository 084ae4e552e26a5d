# SPDX-License-Identifier: Apache-2.0
"""`so101-demos --workers`: the same data from several processes, which never stay behind."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from lerobot.datasets import LeRobotDataset
from lerobot.datasets.io_utils import load_info

from lerobot_env_so101_workbench.demos.command import DemosConfig, record
from lerobot_env_so101_workbench.demos.workers import Workers

OPTIONS = {"cameras": ["top"], "height": 32, "width": 32, "rgb": False, "seg": True, "video": False}


class Counting:
    """A source of episodes that fails, dies or is not kept at given seeds."""

    identity, first_seed, is_needed = {}, 0, True

    def __init__(self, fails: int = -1, dies: int = -1) -> None:
        self._fails, self._dies = fails, dies

    def episode(self, seed):
        if seed == self._fails:
            raise ValueError("the policy lacks an observation")
        if seed == self._dies:
            os.kill(os.getpid(), signal.SIGKILL)
        self.succeeded = seed % 4 != 3
        yield {"seed": seed}

    def close(self):
        pass


@pytest.fixture
def workers(request):
    """Two processes that run `Counting` with the given options."""
    made = Workers(partial(Counting, **getattr(request, "param", {})), 2, Counting())
    yield made
    made.close()


def test_episodes_come_in_order(workers):
    for seed in range(5, 17):
        frames = list(workers.episode(seed))
        assert workers.succeeded == (seed % 4 != 3)
        assert frames == ([{"seed": seed}] if workers.succeeded else [])


@pytest.mark.parametrize("workers", [{"fails": 2}], indirect=True)
def test_an_error_of_an_episode_is_raised(workers):
    list(workers.episode(0)), list(workers.episode(1))
    with pytest.raises(ValueError, match="the policy lacks an observation"):
        list(workers.episode(2))


@pytest.mark.parametrize("workers", [{"dies": 2}], indirect=True)
def test_a_killed_process_is_an_error(workers):
    list(workers.episode(0)), list(workers.episode(1))
    with pytest.raises(RuntimeError, match="--workers: a process ended with exit code -9"):
        list(workers.episode(2))


@pytest.mark.slow
def test_data_do_not_depend_on_workers(tmp_path):
    tables = []
    for workers in (0, 2):
        root = tmp_path / str(workers)
        record(DemosConfig(root=root, task="place_cube", episodes=4, workers=workers, **OPTIONS))
        data = pq.read_table(next((root / "data").rglob("*.parquet")))
        tables.append(data)
        assert LeRobotDataset("local/place", root=root).num_episodes == 4
    assert tables[0].schema.names == tables[1].schema.names
    for name in ("index", "episode_index", "action", "observation.state"):
        np.testing.assert_array_equal(*(np.array(table[name].to_pylist()) for table in tables))
    images = [table["observation.images.top_seg"].to_pylist() for table in tables]
    assert [row["bytes"] for row in images[0]] == [row["bytes"] for row in images[1]]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_stays_behind(tmp_path, sent):
    root = tmp_path / "d"
    command = Path(sys.executable).parent / "so101-demos"
    options = ["--cameras=[top]", "--height=32", "--width=32", "--rgb=false", "--seg=true", "--video=false"]
    arguments = [str(command), f"--root={root}", "--episodes=500", "--workers=2", *options]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    _wait_until(lambda: (root / "meta" / "info.json").is_file() and load_info(root).total_episodes > 0)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(sent)
    process.communicate(timeout=120)
    _wait_until(lambda: not any(_is_alive(child) for child in children))
    assert LeRobotDataset("local/lift", root=root).num_episodes >= 1


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 180.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
