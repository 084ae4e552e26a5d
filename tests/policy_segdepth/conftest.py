# SPDX-License-Identifier: Apache-2.0
"""A dataset as a recorder writes it, without a simulator: masks and depth beside RGB images."""

import numpy as np
import pytest
from lerobot.datasets import LeRobotDataset

CAMERAS = ("top", "wrist")
REPO_ID = "local/synthetic"


@pytest.fixture(scope="module")
def synthetic_root(tmp_path_factory):
    """Folder of 2 episodes of 10 frames; a square of class "cube" and the action move together."""
    joints = {"dtype": "float32", "shape": (6,), "names": [f"joint_{i}.pos" for i in range(6)]}
    features = {"observation.state": joints, "action": joints}
    for camera in CAMERAS:
        names = ["height", "width", "channels"]
        features[f"observation.images.{camera}"] = {"dtype": "image", "shape": (84, 84, 3), "names": names}
        for kind in ("seg", "depth"):
            features[f"observation.images.{camera}_{kind}"] = {
                "dtype": "image",
                "shape": (84, 84, 1),
                "names": names,
                "info": {"is_depth_map": True},
            }
    root = tmp_path_factory.mktemp("segdepth") / "synthetic"
    dataset = LeRobotDataset.create(REPO_ID, 30, features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for _ in range(2):
        for _ in range(10):
            dataset.add_frame(_frame(rng))
        dataset.save_episode()
    dataset.finalize()
    return root


def _frame(rng: np.random.Generator) -> dict:
    corner = rng.integers(10, 60, 2)
    ids = np.full((84, 84, 1), 2, dtype=np.uint16)
    ids[corner[0] : corner[0] + 12, corner[1] : corner[1] + 12] = 3
    depth = rng.integers(200, 1500, (84, 84, 1), dtype=np.uint16)
    frame = {
        "observation.state": rng.normal(size=6).astype(np.float32),
        "action": np.repeat(corner, 3).astype(np.float32),
        "task": "follow the cube",
    }
    for camera in CAMERAS:
        frame[f"observation.images.{camera}"] = np.zeros((84, 84, 3), dtype=np.uint8)
        frame[f"observation.images.{camera}_seg"] = ids
        frame[f"observation.images.{camera}_depth"] = depth
    return frame
