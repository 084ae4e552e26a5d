# SPDX-License-Identifier: Apache-2.0
"""A trained policy with its pipelines, from its checkpoint alone, and what an environment shows it."""

from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.envs.utils import preprocess_observation
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins


def load_policy(checkpoint: Path, device: str = "cpu", **changes: Any) -> tuple[Any, Any, Any]:
    """The policy, its preprocessor and its postprocessor.

    Args:
        checkpoint: a `pretrained_model` folder.
        device: cpu or cuda.
        changes: fields of its configuration, by name.
    """
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(checkpoint)
    for name, value in {**changes, "device": device}.items():
        setattr(config, name, value)
    policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
    pipelines = make_pre_post_processors(
        config,
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"device_processor": {"device": device}},
    )
    return policy, *pipelines


def batch_of_one(observation: dict[str, Any]) -> dict[str, Any]:
    """An observation of a gymnasium environment as a batch by LeRobot's names."""
    batched = {key: value[None] for key, value in observation.items() if key != "pixels"}
    if "pixels" in observation:
        batched["pixels"] = {key: value[None] for key, value in observation["pixels"].items()}
    return preprocess_observation(batched)
