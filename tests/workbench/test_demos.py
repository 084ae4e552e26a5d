# SPDX-License-Identifier: Apache-2.0
"""`so101-demos`: recordings are exact, and finished episodes are never lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets import LeRobotDataset, video_utils
from lerobot.datasets.video_utils import StreamingVideoEncoder

from lerobot_env_so101_workbench.demos.command import DemosConfig, main, open_source, record
from lerobot_env_so101_workbench.demos.demonstrator import Demonstrator
from lerobot_env_so101_workbench.demos.takeovers import PolicyOptions
from lerobot_env_so101_workbench.sim.cameras import CameraSetup
from lerobot_env_so101_workbench.sim.world import World
from lerobot_processor_so101.recording import RecordingDataset, check_videos, count_frames


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
    """Frames of the first episode, computed again from its seed."""
    settings = config(root="unused")
    world = World(settings.task, settings.level)
    cameras = CameraSetup.of(settings, settings.cameras)
    frames = list(Demonstrator(world, cameras, settings.disturbance).episode(seed=0))
    assert world.is_success()
    world.close()
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


def test_a_lower_rate_keeps_each_nth_frame(tmp_path, expected):
    record(config(tmp_path / "d", episodes=1, fps=6))
    dataset = LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d")
    assert (dataset.fps, dataset.num_frames) == (6, len(expected[::5]))
    for item, frame in zip(dataset, expected[::5], strict=True):
        np.testing.assert_array_equal(item["observation.state"], frame["observation.state"])


def test_labels_are_clean_while_the_arm_is_disturbed(expected):
    """The recorded action is the expert's, and differs from the disturbed motion of the arm."""
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


def test_resume_adds_other_initial_states(tmp_path):
    record(config(tmp_path / "d", episodes=1))
    record(config(tmp_path / "d", episodes=2, resume=True))
    dataset = LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d")
    assert dataset.num_episodes == 3
    firsts = [
        dataset[int(episode["dataset_from_index"])]["observation.state"] for episode in dataset.meta.episodes
    ]
    assert len({tuple(first.tolist()) for first in firsts}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "place_cube"}, "--task: found lift_cube in the dataset, and place_cube in the command"),
        ({"level": "randomised"}, "--level: found clean in the dataset, and randomised in the command"),
        (
            {"cameras": ["front"]},
            r"--cameras.*found \[.*top_seg.*\] in the dataset, and \[.*front_seg.*\] in the",
        ),
        ({"depth": False}, "--depth: found"),
        ({"fps": 10}, "--fps: found 30 in the dataset, and 10 in the command"),
        ({"width": 80}, r"shape of .*found \(48, 64, \d\) in the dataset, and \(48, 80, \d\)"),
        ({"video": True}, r"type of .*found image in the dataset, and video"),
    ],
)
def test_resume_with_other_options_is_refused(tmp_path, changes, message):
    root = tmp_path / "d"
    record(config(root, episodes=1))
    with pytest.raises(ValueError, match=message):
        record(config(root, resume=True, **changes))
    (root / "meta" / "so101_demos.json").unlink()  # as of an older dataset
    if "task" in changes:
        with pytest.raises(
            ValueError, match=r"class names of .*found .*cube.*, and .*blue bowl.* in the command"
        ):
            record(config(root, resume=True, **changes))
    assert LeRobotDataset("local/lift_cube_clean", root=root).num_episodes == 1


@pytest.mark.parametrize("resume", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_second_recording_to_one_folder_is_refused(tmp_path, own_elsewhere, resume):
    if resume:
        record(config(tmp_path / "d", episodes=1))
    pid = own_elsewhere(tmp_path / "d").pid
    with pytest.raises(BlockingIOError, match=rf"in use by process {pid}\b"):
        record(config(tmp_path / "d", resume=resume))


def test_resume_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no dataset"):
        record(config(tmp_path / "nothing", resume=True))


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_the_finished_episodes(tmp_path, monkeypatch, command_loggers, signum, video):
    """The interrupt comes in the middle of the third episode."""
    episode, calls = Demonstrator.episode, []

    def interrupted(self, seed):
        calls.append(seed)
        for tick, frame in enumerate(episode(self, seed)):
            if len(calls) == 3 and tick == 10:
                os.kill(os.getpid(), signum)
            yield frame

    monkeypatch.setattr(Demonstrator, "episode", interrupted)
    options = ["--cameras=[top]", "--height=48", "--width=64", "--seg=true", "--episodes=9"]
    monkeypatch.setattr(
        sys, "argv", ["so101-demos", f"--root={tmp_path / 'd'}", f"--video={video}", *options]
    )
    main()
    dataset = LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d")
    assert dataset.num_episodes == 2
    assert dataset[dataset.num_frames - 1]["task"] == "Lift the cube."


@pytest.mark.parametrize("video", [False, True])
def test_a_full_disk_keeps_the_finished_episodes(small_disk, capsys, monkeypatch, command_loggers, video):
    """The message names the cause, and a resumed recording has every episode once."""
    root, options = small_disk / "d", ["--cameras=[top]", "--height=48", "--width=64", f"--video={video}"]
    filler, save = small_disk / "filler", RecordingDataset.save_episode

    def save_and_fill(self, *args):
        save(self, *args)
        if self.num_episodes == 2:
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 60_000))

    monkeypatch.setattr(RecordingDataset, "save_episode", save_and_fill)
    monkeypatch.setattr(sys, "argv", ["so101-demos", f"--root={root}", *options, "--episodes=50"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("so101-demos")]
    assert len(lines) == 1
    assert "the disk is full" in lines[0]
    finished = LeRobotDataset("local/lift_cube_clean", root=root).num_episodes
    assert finished >= 2
    filler.unlink()
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "--episodes=1", "--resume=true"])
    main()
    dataset = LeRobotDataset("local/lift_cube_clean", root=root)
    starts = [
        tuple(dataset[row["dataset_from_index"]]["observation.state"].tolist())
        for row in dataset.meta.episodes
    ]
    assert len(set(starts)) == len(starts) == finished + 1
    if video:
        check_videos(root)


def test_failed_demonstrations_leave_no_frame(tmp_path, monkeypatch):
    """The expert fails at the second seed: its frames are not in the dataset, the third seed's are."""
    episode = Demonstrator.episode

    def failing(self, seed):
        for tick, frame in enumerate(episode(self, seed)):
            if seed == 1 and tick == 20:
                return
            yield frame

    monkeypatch.setattr(Demonstrator, "episode", failing)
    record(config(tmp_path / "d", video=True))
    monkeypatch.undo()
    dataset = LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d")
    assert dataset.num_episodes == 2
    world = World("lift_cube", renderer="ray")
    demonstrator = Demonstrator(world, CameraSetup(("top",), 48, 64, rgb=False), 1.2)
    for episode_index, seed in enumerate((0, 2)):
        expected = [frame["action"] for frame in demonstrator.episode(seed)]
        row = dataset.meta.episodes[episode_index]
        found = dataset.hf_dataset[row["dataset_from_index"] : row["dataset_to_index"]]["action"]
        np.testing.assert_array_equal(np.array(found), np.array(expected))
    world.close()
    check_videos(tmp_path / "d")


@pytest.mark.slow
def test_the_encoder_prints_nothing(tmp_path):
    options = ["--cameras=[top]", "--rgb=false", "--seg=true", "--episodes=1", "--height=48", "--width=64"]
    command = [
        sys.executable,
        "-m",
        "lerobot_env_so101_workbench.demos.command",
        f"--root={tmp_path / 'd'}",
        *options,
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "x265" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "lift_cub"}, r"task: found task 'lift_cub'.*Did you mean 'lift_cube'"),
        ({"level": "hard"}, "level: found level 'hard', expected one of clean, distractors, randomised"),
        ({"cameras": ["side"]}, "cameras: found camera 'side', expected one of top, wrist, front"),
        ({"width": 4}, "found 4x48 pixels"),
        ({"disturbance": -1.0}, "disturbance: found -1.0"),
        ({"fps": 4}, "--fps: found 4, expected 30 or a divisor of it"),
        ({"fps": 5, "policy": PolicyOptions(Path("x"))}, "--fps: found 5, expected 30 for takeovers"),
    ],
)
def test_bad_options_are_named_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        record(config(tmp_path / "d", **changes))
    assert not (tmp_path / "d").exists()


@pytest.fixture
def slow_encoder(monkeypatch):
    """Make the encoder slower than frames arrive: each frame waits longer than LeRobot's queue does."""
    quantize = video_utils.quantize_depth

    def slow(*args, **kwargs):
        time.sleep(0.15)
        return quantize(*args, **kwargs)

    monkeypatch.setattr(video_utils, "quantize_depth", slow)


def test_a_slow_encoder_loses_no_frame(tmp_path, expected, slow_encoder):
    record(config(tmp_path / "d", video=True, episodes=1))
    videos = sorted((tmp_path / "d" / "videos").rglob("*.mp4"))
    assert [count_frames(path) for path in videos] == [len(expected)] * 3
    dataset = LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d")
    for index, frame in enumerate(expected):
        ids = dataset[index]["observation.images.top_seg"][0].numpy()
        np.testing.assert_array_equal(ids, frame["observation.images.top_seg"][..., 0])


def test_frames_that_the_encoder_loses_stop_the_recording(tmp_path, monkeypatch):
    """An episode that lacks a frame is not saved, and the finished ones stay."""
    feed, fed = StreamingVideoEncoder.feed_frame, []

    def lossy(self, key, image):
        fed.append(key)
        if len(fed) != 200:  # one frame of the second episode
            feed(self, key, image)

    monkeypatch.setattr(StreamingVideoEncoder, "feed_frame", lossy)
    with pytest.raises(RuntimeError, match=r"lost frames.*found \d+ frames, expected"):
        record(config(tmp_path / "d", video=True, episodes=3))
    dataset = LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d")
    assert dataset.num_episodes == 1
    assert len(dataset) == len(dataset.hf_dataset) == dataset.meta.total_frames
    check_videos(tmp_path / "d")


def test_shadows_are_rendered_if_asked_for(tmp_path):
    for shadows in (False, True):
        source = open_source(config(tmp_path / "d", shadows=shadows))
        assert (source.world.model.vis.quality.shadowsize > 0) == shadows
        source.close()
