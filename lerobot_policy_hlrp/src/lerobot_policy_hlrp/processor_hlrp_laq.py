# SPDX-License-Identifier: Apache-2.0
"""Pipelines around the latent action model."""

from typing import Any

from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from torch import Tensor

from lerobot_processor_so101 import SegmentationProcessorStep, training_dataset

from .configuration_hlrp_laq import HLRPLAQConfig


def make_hlrp_laq_pre_post_processors(
    config: HLRPLAQConfig,
    dataset_stats: dict[str, dict[str, Tensor]] | None = None,
    dataset_meta: LeRobotDatasetMetadata | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Build the pipelines of a new model; those of a checkpoint are rebuilt from its JSON instead.

    Args:
        config: configuration of the model, with its features.
        dataset_stats: not used: pictures are not normalised.
        dataset_meta: says which segmenter made the masks of the dataset, if they were precomputed; by default that of
            the training.

    Returns:
        The preprocessor, which adds masks or the promise of them where the loss asks for them, and the postprocessor.

    Raises:
        ValueError: the masks of the dataset were made by another segmenter, or have other classes.
    """
    steps = make_default_policy_processor_steps(config, dataset_stats)
    masks = []
    if config.mask_classes:
        dataset_meta = training_dataset(config, dataset_meta)
        features = dataset_meta.features if dataset_meta else {}
        size = [config.image_size, config.image_size]
        step = SegmentationProcessorStep([config.camera], size, segmenter=config.segmenter)
        step.check_dataset(features)
        step.check_class_names(config.class_names, features)
        masks = [step]
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            steps.to_device,
            *masks,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
