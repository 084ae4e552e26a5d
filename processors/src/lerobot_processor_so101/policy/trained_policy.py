# SPDX-License-Identifier: Apache-2.0
"""Load a trained policy with its pipelines, and batch an environment's observations for it."""

from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.envs.utils import preprocess_observation
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

from .trust import check_pipelines


def load_policy(checkpoint: Path, device: str = "cpu", **changes: Any) -> tuple[Any, Any, Any]:
    """Return the policy of a `pretrained_model` folder, its preprocessor and its postprocessor.

    `changes` are changed fields of the configuration, by name.
    """
    register_third_party_plugins()
    check_pipelines(Path(checkpoint))
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
    """Return an observation of a gymnasium environment as a batch of one under LeRobot's keys."""
    batched = {key: value[None] for key, value in observation.items() if key != "pixels"}
    if "pixels" in observation:
        batched["pixels"] = {key: value[None] for key, value in observation["pixels"].items()}
    return preprocess_observation(batched)
