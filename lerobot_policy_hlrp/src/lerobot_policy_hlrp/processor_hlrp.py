# SPDX-License-Identifier: Apache-2.0
"""Pipelines around the hlrp policy: those of SmolVLA, with the tokenizer in the checkpoint."""

from lerobot.datasets import LeRobotDatasetMetadata

from lerobot_processor_so101.policy.pipeline import Pipelines, Stats, make_pipelines
from lerobot_processor_so101.policy.smolvla_checkpoint import language_steps

from .configuration_hlrp import HLRPConfig


def make_hlrp_pre_post_processors(
    config: HLRPConfig, dataset_stats: Stats | None = None, dataset_meta: LeRobotDatasetMetadata | None = None
) -> Pipelines:
    """Build the pipelines of a new policy for its dataset, also with `init_from`; see `make_pipelines`."""
    language = language_steps(config)
    return make_pipelines(config, dataset_stats, dataset_meta=dataset_meta, before_device=language)
