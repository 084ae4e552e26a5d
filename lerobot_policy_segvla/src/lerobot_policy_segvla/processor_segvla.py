# SPDX-License-Identifier: Apache-2.0
"""Pipelines of the segvla policy: SmolVLA's, with the segmentation step."""

import copy

from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.utils.constants import OBS_IMAGES

from lerobot_processor_so101 import training_dataset
from lerobot_processor_so101.policy.pipeline import Pipelines, Stats, make_pipelines
from lerobot_processor_so101.policy.smolvla_checkpoint import language_steps

from .configuration_segvla import SegVLAConfig
from .segmentation_step import SegVLAAddSegmentationStep


def make_segvla_pre_post_processors(
    config: SegVLAConfig,
    dataset_stats: Stats | None = None,
    dataset_meta: LeRobotDatasetMetadata | None = None,
) -> Pipelines:
    """Build the pipelines of a new policy; see `make_pipelines`.

    The preprocessor adds language tokens and scores, deferred if they are live.

    Raises:
        ValueError: if the segmenter is not the dataset's, or its classes are not those of the configuration.
    """
    config.validate_features()
    dataset_meta = training_dataset(config, dataset_meta)
    # LeRobot takes stored scores for a state, and would normalise them.
    normalised, scores = copy.copy(config), config.segmentation_feature_map.values()
    features = config.input_features or {}
    normalised.input_features = {key: feature for key, feature in features.items() if key not in scores}
    stored = dataset_meta.features if dataset_meta else {}
    return make_pipelines(
        normalised,
        dataset_stats,
        dataset_meta=dataset_meta,
        before_device=language_steps(config),
        before_normalizer=[_segmentation_step(config, stored)] if config.uses_cues else [],
    )


def _segmentation_step(config: SegVLAConfig, features: dict[str, dict]) -> SegVLAAddSegmentationStep:
    """Build the step for a dataset with these features; live scores get the size of its stored ones."""
    feature_map = config.segmentation_feature_map
    keys = {camera.removeprefix(f"{OBS_IMAGES}."): key for camera, key in feature_map.items()}
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
    if not step.prompted_by_sentence and config.segmentation_class_names:
        step.check_class_names(config.segmentation_class_names, features, "segmentation_class_names")
    return step
