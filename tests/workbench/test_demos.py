# SPDX-License-Identifier: Apache-2.0
"""`so101-demos`: what is written comes back exactly, and nothing finished is ever lost."""

import os
import signal

import numpy as np
import pytest
from lerobot.datasets import LeRobotDataset

from lerobot_env_so101_workbench.demos import Demonstrator, DemosConfig, record
from lerobot_env_so101_workbench.world import World


def config(root, **changes) -> DemosConfig:
    settings = {
        "episodes": 2,
        "cameras": ["top"],
        "height": 48,
        "width": 64,
        "seg": True,
        "depth": True,
        "video": False,
    }
    return DemosConfig(root=root, **{**settings, **changes})


@pytest.fixture(scope="module")
def expected() -> list[dict]:
    """Frames of the first episode, made again from its seed."""
    settings = config(root="unused")
    world = World(settings.task, settings.level)
    frames = Demonstrator(world, settings.robot().view(), settings.disturbance).episode(seed=0)
    world.close()
    assert frames is not None
    return frames


@pytest.mark.parametrize("video", [False, True])
def test_ids_depth_state_and_action_come_back_exactly(tmp_path, expected, video):
    record(config(tmp_path / "d", video=video, episodes=1))
    dataset = LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d")
    assert dataset.num_frames == len(expected)
    for index in (0, len(expected) // 2, len(expected) - 1):
        item, frame = dataset[index], expected[index]
        for key in ("observation.images.top_seg", "observation.images.top_depth"):
            np.testing.assert_array_equal(
                item[key][0].numpy(), frame[key][..., 0].astype(np.float32), err_msg=key
            )
        np.testing.assert_array_equal(item["observation.state"], frame["observation.state"])
        np.testing.assert_array_equal(item["action"], frame["action"])
        assert item["task"] == frame["task"] == "Lift the cube."
    assert set(np.unique(dataset[0]["observation.images.top_seg"])) <= set(range(6))


def test_labels_are_clean_while_the_arm_is_shaken(expected):
    """The recorded action is the expert's; where it leads differs from where the arm went."""
    state = np.stack([frame["observation.state"] for frame in expected])
    action = np.stack([frame["action"] for frame in expected])
    missed = np.abs(state[1:, :5] - action[:-1, :5]).max(axis=1)
    assert np.median(missed) > 0.1
    assert np.abs(action - state)[:, :5].max() < 5.5  # the expert's own largest step


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"exists already and was left as it is.*--resume=true"):
        record(config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_resume_adds_other_starts(tmp_path):
    record(config(tmp_path / "d", episodes=1))
    record(config(tmp_path / "d", episodes=2, resume=True))
    dataset = LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d")
    assert dataset.num_episodes == 3
    firsts = [
        dataset[int(episode["dataset_from_index"])]["observation.state"] for episode in dataset.meta.episodes
    ]
    assert len({tuple(first.tolist()) for first in firsts}) == 3


def test_resume_without_a_dataset_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no dataset"):
        record(config(tmp_path / "nothing", resume=True))


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_the_finished_episodes(tmp_path, monkeypatch, signum, video):
    episode, calls = Demonstrator.episode, []

    def interrupted(self, seed):
        calls.append(seed)
        if len(calls) == 3:
            os.kill(os.getpid(), signum)
        return episode(self, seed)

    monkeypatch.setattr(Demonstrator, "episode", interrupted)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background ignores Ctrl-C
    try:
        record(config(tmp_path / "d", episodes=9, video=video))
    finally:
        signal.signal(signal.SIGINT, before)
    dataset = LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d")
    assert dataset.num_episodes == 2
    assert dataset[dataset.num_frames - 1]["task"] == "Lift the cube."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "lift_cub"}, r"task: found task 'lift_cub'.*Did you mean 'lift_cube'"),
        ({"level": "hard"}, "level: found level 'hard', expected one of clean, distractors, randomised"),
        ({"cameras": ["side"]}, "cameras: found camera 'side', expected one of top, wrist, front"),
        ({"width": 4}, "found 4x48 pixels"),
        ({"disturbance": -1.0}, "disturbance: found -1.0"),
    ],
)
def test_bad_options_are_named_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        record(config(tmp_path / "d", **changes))
    assert not (tmp_path / "d").exists()
