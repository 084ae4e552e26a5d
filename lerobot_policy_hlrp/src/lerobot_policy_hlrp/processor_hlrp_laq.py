# SPDX-License-Identifier: Apache-2.0
"""Pipelines around the latent action model."""

from lerobot.datasets import LeRobotDatasetMetadata

from lerobot_processor_so101 import SegmentationProcessorStep, training_dataset
from lerobot_processor_so101.policy.pipeline import Pipelines, Stats, make_pipelines

from .configuration_hlrp_laq import HLRPLAQConfig


def make_hlrp_laq_pre_post_processors(
    config: HLRPLAQConfig,
    dataset_stats: Stats | None = None,
    dataset_meta: LeRobotDatasetMetadata | None = None,
) -> Pipelines:
    """Build the pipelines of a new model, with (deferred) masks if the loss needs them; see `make_pipelines`.

    Raises:
        ValueError: if the masks of the dataset come from another segmenter or have other classes.
    """
    masks = []
    if config.mask_classes:
        dataset_meta = training_dataset(config, dataset_meta)
        features = dataset_meta.features if dataset_meta else {}
        size = [config.image_size, config.image_size]
        step = SegmentationProcessorStep([config.camera], size, segmenter=config.segmenter)
        step.check_dataset(features)
        step.check_class_names(config.class_names, features)
        masks = [step]
    return make_pipelines(config, dataset_stats, before_normalizer=masks)
