# SPDX-License-Identifier: Apache-2.0
"""Observations of the simulated and the real environment, in the form that LeRobot reads from Gymnasium."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from .arm import JOINTS


def as_observation(joints: np.ndarray, images: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return an observation.

    Args:
        joints: (6,) in LeRobot's units.
        images: by name, (H, W, 3) uint8 RGB, or (H, W, 1) class ids or depth.

    Returns:
        `agent_pos` (6,) float32; `pixels` {name: (H, W, 3)} if there is RGB; `images.<name>` (1, H, W)
        float32, which LeRobot passes on as `observation.images.<name>`, as its data loader does.
    """
    observation: dict[str, Any] = {"agent_pos": joints.astype(np.float32)}
    pixels = {}
    for name, image in images.items():
        if image.shape[-1] == 3:
            pixels[name] = image
        else:
            observation[f"images.{name}"] = np.moveaxis(image, -1, 0).astype(np.float32)
    return observation | ({"pixels": pixels} if pixels else {})


def observation_space(shapes: Mapping[str, tuple[int, int, int]], highest: float = np.inf) -> gym.spaces.Dict:
    """Return the space of `as_observation`.

    Args:
        shapes: (H, W, C) of each image by name.
        highest: largest value of an image with one channel.
    """
    spaces: dict[str, gym.Space] = {"agent_pos": gym.spaces.Box(-np.inf, np.inf, (len(JOINTS),), np.float32)}
    pixels: dict[str, gym.Space] = {}
    for name, (height, width, channels) in shapes.items():
        if channels == 3:
            pixels[name] = gym.spaces.Box(0, 255, (height, width, 3), np.uint8)
        else:
            spaces[f"images.{name}"] = gym.spaces.Box(0, highest, (1, height, width), np.float32)
    return gym.spaces.Dict(spaces | ({"pixels": gym.spaces.Dict(pixels)} if pixels else {}))
