# SPDX-License-Identifier: Apache-2.0
"""Recordings of a few frames, whose content follows from the number of the episode."""

from pathlib import Path

import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets import LeRobotDataset

from lerobot_processor_so101.recording import RecordingDataset, check_videos

SIZE = (32, 48)
VECTOR = {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]}
CAMERA, MASKS = "observation.images.top", "observation.images.top_seg"


def open_dataset(
    root: Path,
    video: bool,
    resume: bool = False,
    kind: type[LeRobotDataset] = RecordingDataset,
    masks: bool = False,
    **options,
) -> LeRobotDataset:
    """Create a recording, or open one to add episodes; `options` are those of LeRobot."""
    options |= {"root": root, "streaming_encoding": video, "rgb_encoder": RGBEncoderConfig(vcodec="h264")}
    if resume:
        return kind.resume("local/d", **options)
    image = {
        "dtype": "video" if video else "image",
        "shape": (*SIZE, 3),
        "names": ["height", "width", "channels"],
    }
    features = {"action": VECTOR, "observation.state": VECTOR, CAMERA: image}
    if masks:
        features[MASKS] = {**image, "shape": (*SIZE, 1), "info": {"is_depth_map": True}}
    return kind.create("local/d", 30, features, use_videos=video, **options)


def frames(episode: int) -> list[dict]:
    """Return the frames of an episode; its length and content depend on its number."""
    rng = np.random.default_rng(episode)
    return [
        {
            "action": rng.normal(size=3).astype(np.float32),
            "observation.state": rng.normal(size=3).astype(np.float32),
            CAMERA: np.full((*SIZE, 3), (10 * episode + tick) % 200, np.uint8),
            "task": f"Task {episode % 2}.",
        }
        for tick in range(4 + episode % 3)
    ]


def with_masks(frame: dict) -> dict:
    """Add class ids that differ between frames."""
    ids = np.add.outer(np.arange(SIZE[0]), np.arange(SIZE[1]))[..., None]
    return {**frame, MASKS: (ids + frame[CAMERA][0, 0, 0]).astype(np.uint16)}


def add(dataset: LeRobotDataset, episode: int) -> None:
    for frame in frames(episode):
        dataset.add_frame(frame)
    dataset.save_episode()


def check(root: Path, episodes: int) -> None:
    """Load a dataset and compare it with what was recorded."""
    dataset = LeRobotDataset("local/d", root=root)
    expected = [frame for episode in range(episodes) for frame in frames(episode)]
    assert dataset.num_episodes == len(dataset.meta.episodes) == episodes
    assert len(dataset) == len(dataset.hf_dataset) == len(expected)
    for index, frame in enumerate(expected):
        item = dataset[index]
        assert item["task"] == frame["task"]
        np.testing.assert_array_equal(item["observation.state"], frame["observation.state"])
        np.testing.assert_array_equal(item["action"], frame["action"])
        assert abs(255 * float(item[CAMERA].mean()) - frame[CAMERA].mean()) < 3
    states = np.stack([frame["observation.state"] for frame in expected])
    np.testing.assert_allclose(dataset.meta.stats["observation.state"]["mean"], states.mean(0), rtol=1e-5)
    check_videos(root)
