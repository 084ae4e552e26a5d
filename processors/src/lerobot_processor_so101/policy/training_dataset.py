# SPDX-License-Identifier: Apache-2.0
"""Find the dataset that a policy is trained on while its pipelines are built."""

from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDatasetMetadata

_loaded: PreTrainedConfig | None = None


def training_dataset(
    config: Any, given: LeRobotDatasetMetadata | None = None
) -> LeRobotDatasetMetadata | None:
    """Return the metadata of a policy's dataset: those `given` to its factory, or else in its configuration.

    `lerobot-train` passes only the statistics to the factory of pipelines. LeRobot stores the metadata on the
    policy's configuration when it builds the policy. None if there are none.
    """
    return given if given is not None else getattr(config, "_runtime_dataset_meta", None)


def set_loaded_policy(config: PreTrainedConfig) -> None:
    """Remember the configuration of the checkpoint that was loaded last, for the steps of its pipelines.

    LeRobot loads the policy first and then rebuilds the pipelines from their JSON, without configuration or
    dataset. A training that resumes or fine-tunes may use another dataset than the checkpoint was trained on,
    so a step that needs the dataset cannot take it from the JSON.
    """
    global _loaded
    _loaded = config


def loaded_policy() -> PreTrainedConfig | None:
    """Return the configuration of the checkpoint that was loaded last in this process."""
    return _loaded
