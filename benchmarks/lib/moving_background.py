# SPDX-License-Identifier: Apache-2.0
"""Add moving discs to the background of demonstrations, unrelated to what the arm does.

Three coloured discs per episode, each on its own course, are drawn on the pixels of the table; the arm, the
cube and everything else stay in front of them. The recording needs masks (`so101-demos --seg=true
--video=false`).
"""

from pathlib import Path

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_processor_so101 import CLASS_NAMES, image_key
from lerobot_processor_so101.perception.stored import decode_ids

DISCS = 3
TABLE = CLASS_NAMES.index("table")


class Discs:
    """Discs that move at constant speed and are reflected at the edges of the image.

    Args:
        rng: draws them.
        size: (H, W) of the images.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.size = np.array(size)
        self.position = rng.uniform(0, self.size, (DISCS, 2))
        angle = rng.uniform(0, 2 * np.pi, DISCS)
        self.speed = 0.02 * size[0] * np.stack([np.sin(angle), np.cos(angle)], 1)  # pixels per frame
        self.radius = rng.uniform(0.05, 0.1, DISCS) * size[0]
        self.colour = rng.integers(0, 256, (DISCS, 3), dtype=np.uint8)

    def draw(self, image: np.ndarray, where: np.ndarray, tick: int) -> np.ndarray:
        """Return an image with discs.

        Args:
            image: (H, W, 3) uint8.
            where: (H, W), true where discs may be.
            tick: frames since the episode began.
        """
        drawn = image.copy()
        rows, columns = np.indices(where.shape)
        unfolded = (self.position + tick * self.speed) % (2 * self.size)
        centres = np.minimum(unfolded, 2 * self.size - unfolded)
        for (row, column), radius, colour in zip(centres, self.radius, self.colour, strict=True):
            drawn[where & ((rows - row) ** 2 + (columns - column) ** 2 < radius**2)] = colour
        return drawn


def add_discs(root: Path, output: Path) -> None:
    """Write a copy of a dataset, with discs in the images of the top camera."""
    source, key = LeRobotDataset("local/source", root=root), image_key("top")
    kept = (key, f"{key}_seg", OBS_STATE, ACTION)
    features = {name: dict(feature) for name, feature in source.meta.features.items() if name in kept}
    options = {"root": output, "robot_type": source.meta.robot_type, "use_videos": False}
    written = LeRobotDataset.create("local/discs", source.fps, features, **options)
    rng = np.random.default_rng(0)
    for episode in source.meta.episodes:
        discs = Discs(rng, features[key]["shape"][:2])
        for tick, index in enumerate(range(episode["dataset_from_index"], episode["dataset_to_index"])):
            item = source[index]
            image = (255 * item[key]).round().to(torch.uint8).permute(1, 2, 0).numpy()
            stored = item[f"{key}_seg"]
            frame = {name: item[name].numpy() for name in (OBS_STATE, ACTION)} | {"task": item["task"]}
            frame[key] = discs.draw(image, decode_ids(stored).numpy() == TABLE, tick)
            frame[f"{key}_seg"] = stored.to(torch.uint16).permute(1, 2, 0).numpy()
            written.add_frame(frame)
        written.save_episode()
    written.finalize()
