# SPDX-License-Identifier: Apache-2.0
"""Images that a trained policy draws of its inputs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset
from torch.utils.data import default_collate

from ..policy.trained_policy import load_policy


def explained_images(
    checkpoint: Path, dataset: LeRobotDataset, indices: range, device: str
) -> Iterator[dict[str, np.ndarray]]:
    """Yield one drawn image per camera, (H, W, 3) uint8, of each frame.

    The policy of the checkpoint has a method `explain(batch)` that returns such images.

    Raises:
        ValueError: if there is no such checkpoint, or its policy has no such method.
    """
    if not (checkpoint / "config.json").is_file():
        raise ValueError(
            f"--checkpoint: found no config.json in {checkpoint}; give a `pretrained_model` folder."
        )
    policy, preprocessor, _ = load_policy(checkpoint, device)
    if not hasattr(policy, "explain"):
        raise ValueError(
            f"--checkpoint: {policy.config.type!r} policies draw nothing; leave it out to show their inputs."
        )
    for index in indices:
        with torch.no_grad():
            yield policy.explain(preprocessor(default_collate([dataset[index]])))
