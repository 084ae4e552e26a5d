# SPDX-License-Identifier: Apache-2.0
"""A trained policy with its pipelines, from its checkpoint alone."""

from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig
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
