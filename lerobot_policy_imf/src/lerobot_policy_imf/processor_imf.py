# SPDX-License-Identifier: Apache-2.0
"""Pipelines around the imf policy."""

from lerobot.datasets import LeRobotDatasetMetadata

from lerobot_processor_so101.policy.pipeline import Pipelines, Stats, make_pipelines

from .configuration_imf import IMFConfig
from .text_encoder import tokenizer_step


def make_imf_pre_post_processors(
    config: IMFConfig, dataset_stats: Stats | None = None, dataset_meta: LeRobotDatasetMetadata | None = None
) -> Pipelines:
    """Build the pipelines of a new policy, which scale joints to -1..1; see `make_pipelines`."""
    instruction = [tokenizer_step(config.vision_model_name)] if config.instruction else []
    return make_pipelines(config, dataset_stats, dataset_meta=dataset_meta, before_device=instruction)
