# SPDX-License-Identifier: Apache-2.0
"""Pipelines around the hlrp policy: SmolVLA's, with the tokenizer in the checkpoint."""

from typing import Any

from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from torch import Tensor

from lerobot_processor_so101.smolvla_checkpoint import language_steps

from .configuration_hlrp import HLRPConfig


def make_hlrp_pre_post_processors(
    config: HLRPConfig,
    dataset_stats: dict[str, dict[str, Tensor]] | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Build the pipelines of a new policy; those of a checkpoint are rebuilt from its files instead.

    Args:
        config: configuration of the policy, with its features.
        dataset_stats: statistics of state and action, of the dataset that is trained on now: what a checkpoint that it
            starts from was trained on does not matter here.

    Returns:
        The preprocessor, which gives tokens and normalises, and the postprocessor, which returns actions in the
        dataset's units on the CPU.
    """
    steps = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            *language_steps(config),
            steps.to_device,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
