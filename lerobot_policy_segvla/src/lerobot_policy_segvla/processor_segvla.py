# SPDX-License-Identifier: Apache-2.0
"""Pipelines around the segvla policy: SmolVLA's, with the segmentation step in them."""

import copy
from typing import Any

from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from lerobot.utils.constants import OBS_IMAGES
from torch import Tensor

from lerobot_processor_so101 import training_dataset
from lerobot_processor_so101.smolvla_checkpoint import language_steps

from .configuration_segvla import SegVLAConfig
from .segmentation_step import SegVLAAddSegmentationStep


def make_segvla_pre_post_processors(
    config: SegVLAConfig,
    dataset_stats: dict[str, dict[str, Tensor]] | None = None,
    dataset_meta: LeRobotDatasetMetadata | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Build the pipelines of a new policy; those of a checkpoint are rebuilt from its files instead.

    Args:
        config: configuration of the policy, with its features.
        dataset_stats: statistics of state and action.
        dataset_meta: says which model made the scores of the dataset, if they were precomputed; by default that of the
            training.

    Returns:
        The preprocessor, which gives tokens and scores or the promise of them, and the postprocessor, which returns
        actions in the dataset's units on the CPU.

    Raises:
        ValueError: the segmenter is not that of the dataset, or has other classes than the configuration.
    """
    config.validate_features()
    dataset_meta = training_dataset(config, dataset_meta)
    steps = make_default_policy_processor_steps(_without_scores(config), dataset_stats)
    segmentation = (
        [make_step(config, dataset_meta.features if dataset_meta else {})] if config.uses_cues else []
    )
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            *language_steps(config),
            steps.to_device,
            *segmentation,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )


def make_step(config: SegVLAConfig, features: dict[str, dict]) -> SegVLAAddSegmentationStep:
    """Build the segmentation step of a configuration.

    Args:
        config: of the policy, validated.
        features: of the dataset's metadata; its scores' size is what live scores will have.

    Raises:
        ValueError: the segmenter is not that of the dataset, or has other classes than the configuration.
    """
    keys = {
        camera.removeprefix(f"{OBS_IMAGES}."): key for camera, key in config.segmentation_feature_map.items()
    }
    sizes = [(features.get(key) or {}).get("info", {}).get("size") for key in keys.values()]
    default = {"ids": [84, 84], "top_k": [32, 32]}.get(config.segmentation_kind, [512, 512])
    step = SegVLAAddSegmentationStep(
        list(keys),
        next((list(size) for size in sizes if size), default),
        segmenter=config.segmenter,
        classes=list(config.segmenter_classes),
        keys=keys,
        kind=config.segmentation_kind,
        class_names=list(config.class_map.names),
        from_instruction=config.segmentation_from_instruction,
        synonyms=dict(config.segmentation_synonyms),
        max_mentions=config.segmentation_max_mentions,
        required=config.segmentation_required,
    )
    step.check_dataset(features)
    if not step.asks_by_sentence and config.segmentation_class_names:
        step.check_class_names(config.segmentation_class_names, features, "segmentation_class_names")
    return step


def _without_scores(config: SegVLAConfig) -> SegVLAConfig:
    """The configuration for the normaliser: LeRobot takes stored scores for a state, and would normalise them."""
    kept = copy.copy(config)
    scores = set(config.segmentation_feature_map.values())
    kept.input_features = {
        key: feature for key, feature in (config.input_features or {}).items() if key not in scores
    }
    return kept
