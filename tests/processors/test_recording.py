# SPDX-License-Identifier: Apache-2.0
"""Finished episodes survive a kill and a full disk."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot.datasets import LeRobotDataset

from lerobot_processor_so101.recording import RecordingDataset
from tests.small_recording import add, check, frames, open_dataset, with_masks


@pytest.mark.parametrize("video", [False, True])
def test_a_copy_made_after_each_episode_is_complete(tmp_path, video):
    """A copy has what a kill leaves."""
    dataset = open_dataset(tmp_path / "d", video)
    for episode in range(3):
        add(dataset, episode)
        dataset.add_frame(frames(episode + 1)[0])  # the next episode has begun
        shutil.copytree(tmp_path / "d", tmp_path / "copy")
        dataset.clear_episode_buffer()
        check(tmp_path / "copy", episode + 1)
        shutil.rmtree(tmp_path / "copy")
    dataset.finalize()
    check(tmp_path / "d", 3)


@pytest.mark.parametrize("video", [False, True])
def test_a_kill_between_any_two_files_keeps_the_finished_episodes(tmp_path, monkeypatch, video):
    """The dataset loads at each moment of saving, and a resumed one has every episode once."""
    dataset = open_dataset(tmp_path / "d", video)
    add(dataset, 0)
    copies, replace = [], os.replace

    def copy_first(*args, **kwargs):
        copies.append(tmp_path / f"copy{len(copies)}")
        shutil.copytree(tmp_path / "d", copies[-1])
        replace(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", copy_first)
        add(dataset, 1)
    dataset.finalize()
    assert len(copies) == 5 + video  # data, tasks, episodes, info, statistics
    for copy in copies:
        loaded = LeRobotDataset("local/d", root=copy)
        assert loaded.num_episodes == 1 + (copy == copies[-1])
        np.testing.assert_array_equal(loaded[3]["action"], frames(0)[3]["action"])
        resumed = open_dataset(copy, video, resume=True)
        for episode in range(loaded.num_episodes, 2):
            add(resumed, episode)
        resumed.finalize()
        check(copy, 2)


@pytest.mark.parametrize("video", [False, True])
def test_datasets_of_lerobot_are_resumed_and_resume_with_lerobot(tmp_path, video):
    root = tmp_path / "d"
    for episode, kind in enumerate((LeRobotDataset, RecordingDataset, LeRobotDataset, RecordingDataset)):
        dataset = open_dataset(root, video, resume=episode > 0, kind=kind)
        add(dataset, 2 * episode)
        add(dataset, 2 * episode + 1)
        dataset.finalize()
    check(root, 8)


@pytest.mark.parametrize("masks", [False, True])
def test_data_files_and_statistics_are_those_of_lerobot(tmp_path, masks):
    tables, statistics = [], []
    for kind in (LeRobotDataset, RecordingDataset):
        root = tmp_path / kind.__name__
        dataset = open_dataset(root, video=False, kind=kind, masks=masks)
        for frame in frames(0):
            dataset.add_frame(with_masks(frame) if masks else frame)
        dataset.save_episode()
        dataset.finalize()
        tables.append(pq.read_table(next((root / "data").rglob("*.parquet"))))
        statistics.append((root / "meta" / "stats.json").read_text())
    assert tables[0].equals(tables[1])
    described = [json.loads(table.schema.metadata[b"huggingface"])["info"] for table in tables]
    assert described[0] == described[1]
    assert statistics[0] == statistics[1]


@pytest.mark.parametrize("lengths", [(4, 1, 4), (1, 4, 1)])
def test_an_episode_of_one_frame_is_saved(tmp_path, lengths):
    """Its statistics have other types than those of longer ones."""
    dataset = open_dataset(tmp_path / "d", video=False)
    for episode, length in enumerate(lengths):
        for frame in frames(episode)[:length]:
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    loaded = LeRobotDataset("local/d", root=tmp_path / "d")
    assert list(loaded.meta.episodes["length"]) == list(lengths)
    np.testing.assert_array_equal(loaded[len(loaded) - 1]["action"], frames(2)[lengths[2] - 1]["action"])


def test_many_episodes_share_few_files(tmp_path):
    dataset = open_dataset(tmp_path / "d", video=False)
    for episode in range(35):
        add(dataset, episode)
    dataset.finalize()
    check(tmp_path / "d", 35)
    for folder in ("data", "meta/episodes"):
        assert len(list((tmp_path / "d" / folder).rglob("*.parquet"))) == 5


def record_for_ever(root: Path, video: bool, log: Path, resume: bool) -> None:
    dataset = open_dataset(root, video, resume)
    while True:
        add(dataset, dataset.num_episodes)
        with log.open("a") as lines:
            lines.write(f"{dataset.num_episodes}\n")


@pytest.mark.parametrize("video", [pytest.param(False, marks=pytest.mark.slow), True])
def test_killed_recordings_lose_no_finished_episode(tmp_path, video):
    root, log = tmp_path / "d", tmp_path / "log"
    rng, processes = np.random.default_rng(0), multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([record_for_ever.__module__])
    for kill in range(4):
        before = log.read_text().count("\n") if log.exists() else 0
        process = processes.Process(target=record_for_ever, args=(root, video, log, kill > 0))
        process.start()
        limit = time.monotonic() + 60
        while time.monotonic() < limit and (not log.exists() or log.read_text().count("\n") < before + 3):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        finished = log.read_text().count("\n")
        assert finished >= before + 3
        loaded = LeRobotDataset("local/d", root=root)
        assert loaded.num_episodes in (finished, finished + 1)
    resumed = open_dataset(root, video, resume=True)
    resumed.finalize()
    check(root, resumed.num_episodes)


@pytest.mark.parametrize("video", [False, True])
def test_a_full_disk_keeps_the_finished_episodes(small_disk, video):
    root, filler = small_disk / "d", small_disk / "filler"
    dataset = open_dataset(root, video)
    episodes = 0
    errors: list[OSError] = []
    while not errors:
        try:
            add(dataset, episodes)
            episodes += 1
        except OSError as error:
            errors.append(error)
        if episodes == 1:
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 150_000))
    assert errors[0].errno == errno.ENOSPC
    dataset.finalize()
    assert episodes >= 1
    check(root, episodes)
    filler.unlink()
    resumed = open_dataset(root, video, resume=True)
    add(resumed, episodes)
    resumed.finalize()
    check(root, episodes + 1)
