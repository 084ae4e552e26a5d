# SPDX-License-Identifier: Apache-2.0
"""Find the dataset that a policy is trained on while its pipelines are built."""

from typing import Any

from lerobot.datasets import LeRobotDatasetMetadata


def training_dataset(
    config: Any, given: LeRobotDatasetMetadata | None = None
) -> LeRobotDatasetMetadata | None:
    """Return the metadata of the dataset, or None if there is none.

    `lerobot-train` passes only the statistics to the factory of pipelines. LeRobot stores the metadata on the
    policy's configuration when it builds the policy.

    Args:
        config: configuration of the policy.
        given: metadata that the factory was called with.
    """
    return given if given is not None else getattr(config, "_runtime_dataset_meta", None)
