# SPDX-License-Identifier: Apache-2.0
"""The dataset that a policy is trained on, for those who build its pipelines."""

from typing import Any

from lerobot.datasets import LeRobotDatasetMetadata


def training_dataset(
    config: Any, given: LeRobotDatasetMetadata | None = None
) -> LeRobotDatasetMetadata | None:
    """Metadata of the dataset, or None if there is none.

    `lerobot-train` tells a factory of pipelines the statistics and nothing else. What it builds the policy from,
    LeRobot leaves on the policy's configuration, and there it is found.

    Args:
        config: of the policy.
        given: what the factory was called with.
    """
    return given if given is not None else getattr(config, "_runtime_dataset_meta", None)
