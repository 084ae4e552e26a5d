# SPDX-License-Identifier: Apache-2.0
"""What a trained policy makes of a dataset's pictures, for policies that can say it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset
from torch.utils.data import default_collate

from .trained_policy import load_policy


def explained(
    checkpoint: Path, dataset: LeRobotDataset, indices: range, device: str
) -> Iterator[dict[str, np.ndarray]]:
    """Let a policy draw what it reads.

    Args:
        checkpoint: of a policy with a method `explain(batch)`, from a batch to an (H, W, 3) uint8 picture per camera.
        dataset: with what the policy reads.
        indices: of the frames.
        device: cpu or cuda.

    Raises:
        ValueError: there is no such checkpoint, or its policy explains nothing.
    """
    if not (checkpoint / "config.json").is_file():
        raise ValueError(
            f"--checkpoint: found no config.json in {checkpoint}; give a `pretrained_model` folder."
        )
    policy, preprocessor, _ = load_policy(checkpoint, device)
    if not hasattr(policy, "explain"):
        raise ValueError(
            f"--checkpoint: {policy.config.type!r} policies draw nothing; leave it out to see what they see."
        )
    for index in indices:
        with torch.no_grad():
            yield policy.explain(preprocessor(default_collate([dataset[index]])))
