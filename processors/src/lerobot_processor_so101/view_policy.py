# SPDX-License-Identifier: Apache-2.0
"""What a trained policy makes of a dataset's pictures, for policies that can say it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
from torch.utils.data import default_collate


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
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.device = device
    policy: Any = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
    if not hasattr(policy, "explain"):
        raise ValueError(
            f"--checkpoint: {config.type!r} policies draw nothing; leave it out to see what they see."
        )
    preprocessor, _ = make_pre_post_processors(
        config,
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"device_processor": {"device": device}},
    )
    for index in indices:
        with torch.no_grad():
            yield policy.explain(preprocessor(default_collate([dataset[index]])))
