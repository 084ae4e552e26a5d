# SPDX-License-Identifier: Apache-2.0
"""A small LeRobotDataset with two cameras, written by LeRobot itself."""

import logging
from pathlib import Path

import datasets
import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets import LeRobotDataset

NAMES = ["height", "width", "channels"]


def tiny_dataset(
    root: Path | str,
    storage: str = "image",
    lengths: tuple[int, ...] = (7, 5, 9),
    size: tuple[int, int] = (48, 64),
    depth: bool = False,
    fps: int = 30,
    joints: int = 6,
    seed: int = 0,
) -> Path:
    """Write a dataset of random scenes.

    Args:
        root: folder; it must not exist.
        storage: "image" for images in the Parquet files, or the codec of a video: "h264", "libsvtav1".
        lengths: frames of each episode.
        size: (H, W) of the images.
        depth: add `observation.images.top_depth`.
        fps: [Hz].
        joints: numbers of state and action.
        seed: of what is in it.
    """
    logging.getLogger("lerobot").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    video = storage != "image"
    image = {"dtype": "video" if video else "image", "shape": (*size, 3), "names": NAMES}
    names = [f"joint_{number}.pos" for number in range(joints)]
    numbers = {"dtype": "float32", "shape": (joints,), "names": names}
    features = {"action": numbers, "observation.state": numbers}
    features |= {"observation.images.top": image, "observation.images.wrist": image}
    if depth:
        plane = {"dtype": "image", "shape": (*size, 1), "names": NAMES, "info": {"is_depth_map": True}}
        features["observation.images.top_depth"] = plane
    encoder = {"rgb_encoder": RGBEncoderConfig(vcodec=storage)} if video else {}
    dataset = LeRobotDataset.create(
        "local/tiny", fps, features, root=root, robot_type="so101", use_videos=video, **encoder
    )
    rng = np.random.default_rng(seed)
    for length in lengths:
        for _ in range(length):
            frame = {"task": "Lift the cube."}
            for key in ("action", "observation.state"):
                frame[key] = rng.normal(size=joints).astype(np.float32)
            for camera in ("top", "wrist"):
                blocks = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
                frame[f"observation.images.{camera}"] = blocks.repeat(8, 0).repeat(8, 1)
            if depth:
                frame["observation.images.top_depth"] = rng.integers(300, 900, (*size, 1), dtype=np.uint16)
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    return Path(root)
