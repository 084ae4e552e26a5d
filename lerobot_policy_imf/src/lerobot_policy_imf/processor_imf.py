# SPDX-License-Identifier: Apache-2.0
"""Pipelines around the imf policy."""

from typing import Any

from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from torch import Tensor

from .configuration_imf import IMFConfig


def make_imf_pre_post_processors(
    config: IMFConfig,
    dataset_stats: dict[str, dict[str, Tensor]] | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Build the pipelines of a new policy; those of a checkpoint are rebuilt from its files instead.

    Args:
        config: configuration of the policy, with its features.
        dataset_stats: statistics of state and action.

    Returns:
        The preprocessor, which scales joints to -1..1 and leaves pictures alone, and the postprocessor, which returns
        actions in the dataset's units on the CPU.
    """
    steps = make_default_policy_processor_steps(config, dataset_stats)
    sentence = []
    if config.instruction:
        from .instruction import tokenizer_step

        sentence = [tokenizer_step(config.vision_model_name)]
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            *sentence,
            steps.to_device,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
