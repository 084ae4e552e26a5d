# SPDX-License-Identifier: Apache-2.0
"""Demonstrations with things that move on the table and have nothing to do with what the arm does.

    python -m benchmarks.moving_background --root=outputs/demos --output=outputs/restless

Three coloured discs per episode, each on a course of its own, are drawn on every picture where the table is seen: the arm, the cube
and what else is no table stay in front of them. The recording needs masks (`so101-demos --seg=true --video=false`).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset
from lerobot.utils.constants import OBS_IMAGES

from lerobot_processor_so101 import CLASS_NAMES
from lerobot_processor_so101.stored import decode_ids

DISCS = 3
TABLE = CLASS_NAMES.index("table")


class Discs:
    """Discs that move evenly and turn back at the edges of the picture.

    Args:
        rng: draws them.
        size: (H, W) of the pictures.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.size = np.array(size)
        self.place = rng.uniform(0, self.size, (DISCS, 2))
        angle = rng.uniform(0, 2 * np.pi, DISCS)
        self.speed = 0.02 * size[0] * np.stack([np.sin(angle), np.cos(angle)], 1)  # pixels per frame
        self.radius = rng.uniform(0.05, 0.1, DISCS) * size[0]
        self.colour = rng.integers(0, 256, (DISCS, 3), dtype=np.uint8)

    def draw(self, picture: np.ndarray, where: np.ndarray, tick: int) -> np.ndarray:
        """The picture at a time, with discs where they may be.

        Args:
            picture: (H, W, 3) uint8.
            where: (H, W), true where they may be.
            tick: frames since the episode began.
        """
        drawn = picture.copy()
        rows, columns = np.indices(where.shape)
        way = (self.place + tick * self.speed) % (2 * self.size)
        centres = np.minimum(way, 2 * self.size - way)
        for (row, column), radius, colour in zip(centres, self.radius, self.colour, strict=True):
            drawn[where & ((rows - row) ** 2 + (columns - column) ** 2 < radius**2)] = colour
        return drawn


def disturb(root: Path, output: Path, camera: str, seed: int) -> None:
    """Write the dataset."""
    source = LeRobotDataset("local/source", root=root)
    kept = {f"{OBS_IMAGES}.{camera}", f"{OBS_IMAGES}.{camera}_seg", "observation.state", "action"}
    features = {key: dict(feature) for key, feature in source.meta.features.items() if key in kept}
    made = LeRobotDataset.create(
        "local/restless",
        source.fps,
        features,
        root=output,
        robot_type=source.meta.robot_type,
        use_videos=False,
    )
    rng = np.random.default_rng(seed)
    for episode in source.meta.episodes:
        discs = Discs(rng, features[f"{OBS_IMAGES}.{camera}"]["shape"][:2])
        for tick, index in enumerate(range(episode["dataset_from_index"], episode["dataset_to_index"])):
            item = source[index]
            picture = (255 * item[f"{OBS_IMAGES}.{camera}"]).round().to(torch.uint8).permute(1, 2, 0).numpy()
            stored = item[f"{OBS_IMAGES}.{camera}_seg"]
            table = decode_ids(stored).numpy() == TABLE
            made.add_frame(
                {
                    f"{OBS_IMAGES}.{camera}": discs.draw(picture, table, tick),
                    f"{OBS_IMAGES}.{camera}_seg": stored.to(torch.uint16).permute(1, 2, 0).numpy(),
                    "observation.state": item["observation.state"].numpy(),
                    "action": item["action"].numpy(),
                    "task": item["task"],
                }
            )
        made.save_episode()
    made.finalize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--camera", default="top")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    disturb(options.root, options.output, options.camera, options.seed)


if __name__ == "__main__":
    main()
