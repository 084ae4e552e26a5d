# SPDX-License-Identifier: Apache-2.0
"""Pipelines around the segdepth policy."""

from typing import Any

from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from torch import Tensor

from lerobot_processor_so101 import DisparityProcessorStep, SegmentationProcessorStep
from lerobot_processor_so101.perception_step import PerceptionStep

from .configuration_segdepth import SEGMENTER, SegDepthConfig


def make_segdepth_pre_post_processors(
    config: SegDepthConfig,
    dataset_stats: dict[str, dict[str, Tensor]] | None = None,
    dataset_meta: LeRobotDatasetMetadata | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Build the pipelines of a new policy; those of a checkpoint are rebuilt from its JSON instead.

    Args:
        config: configuration of the policy, with its features.
        dataset_stats: statistics of state and action.
        dataset_meta: says which models made the masks and disparity of the dataset, if they were precomputed.

    Returns:
        The preprocessor, which gives ids and disparity or the promise of them, and the postprocessor, which
        returns actions in the dataset's units on the CPU.

    Raises:
        ValueError: the models are not those of the dataset or have other classes than the configuration.
    """
    steps = make_default_policy_processor_steps(config, dataset_stats, normalizer_device=config.device)
    cameras, size = list(config.cameras), [config.image_size, config.image_size]
    own_disparity = config.depth == SEGMENTER
    segmentation = SegmentationProcessorStep(
        cameras, size, segmenter=config.segmenter, classes=list(config.classes), disparity=own_disparity
    )
    perception: list[PerceptionStep] = [segmentation]
    if not own_disparity:
        perception.append(DisparityProcessorStep(cameras, size, depth=config.depth))
    features = dataset_meta.features if dataset_meta else {}
    for step in perception:
        step.check_dataset(features)
    segmentation.check_class_names(config.class_names, features)
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            steps.to_device,
            *perception,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
