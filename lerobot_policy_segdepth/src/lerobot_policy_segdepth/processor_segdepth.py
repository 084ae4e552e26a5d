# SPDX-License-Identifier: Apache-2.0
"""Pipelines around the segdepth policy."""

from typing import Any

from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from torch import Tensor

from lerobot_processor_so101 import MasksAndDisparityProcessorStep

from .configuration_segdepth import SegDepthConfig


def make_segdepth_pre_post_processors(
    config: SegDepthConfig,
    dataset_stats: dict[str, dict[str, Tensor]] | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Build the pipelines of a new policy; those of a checkpoint are rebuilt from its JSON instead.

    Args:
        config: configuration of the policy, with its features.
        dataset_stats: statistics of state and action.

    Returns:
        The preprocessor, which turns recorded masks and depth into ids and disparity, and the postprocessor,
        which returns actions in the dataset's units on the CPU.
    """
    steps = make_default_policy_processor_steps(config, dataset_stats, normalizer_device=config.device)
    perception = MasksAndDisparityProcessorStep(
        cameras=list(config.cameras), image_size=[config.image_size, config.image_size]
    )
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            steps.to_device,
            perception,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
