# SPDX-License-Identifier: Apache-2.0
"""Pipelines around the hlrp policy: those of SmolVLA, with the tokenizer in the checkpoint."""

from lerobot.datasets import LeRobotDatasetMetadata

from lerobot_processor_so101.policy.pipeline import Pipelines, Stats, make_pipelines
from lerobot_processor_so101.policy.smolvla_checkpoint import language_steps

from .configuration_hlrp import HLRPConfig


def make_hlrp_pre_post_processors(
    config: HLRPConfig,
    dataset_stats: Stats | None = None,
    dataset_meta: LeRobotDatasetMetadata | None = None,
) -> Pipelines:
    """Build the pipelines of a new policy; those of a checkpoint are rebuilt from its files instead.

    Args:
        config: configuration of the policy, with its features.
        dataset_stats: statistics of state and action of the dataset that is trained on, also with
            `init_from`.
        dataset_meta: metadata of that dataset; by default that of the current training.

    Returns:
        The preprocessor, which tokenises the task and normalises, and the postprocessor, which returns
        actions in the dataset's units on the CPU.
    """
    return make_pipelines(
        config, dataset_stats, dataset_meta=dataset_meta, before_device=language_steps(config)
    )
