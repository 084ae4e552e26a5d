# SPDX-License-Identifier: Apache-2.0
"""Pipelines of the segvla policy: SmolVLA's, with the segmentation step."""

import copy
import math

from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.utils.constants import OBS_IMAGES

from lerobot_processor_so101 import OBSERVED, training_dataset
from lerobot_processor_so101.policy.pipeline import Pipelines, Stats, make_pipelines
from lerobot_processor_so101.policy.smolvla_checkpoint import language_steps

from .configuration_segvla import SCORE_KEYS, SegVLAConfig
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
    _check_stored_scores(config, features)
    step.check_dataset(features)
    if not step.prompted_by_sentence and config.segmentation_class_names:
        step.check_class_names(config.segmentation_class_names, features, "segmentation_class_names")
    return step


def _check_stored_scores(config: SegVLAConfig, features: dict[str, dict]) -> None:
    """Check that a dataset has no scores that would be ignored, or that would end up on wrong patches.

    Raises:
        ValueError: if its scores have another form than `segmentation_kind`, or come from elsewhere and have
            another aspect ratio than the camera.
    """
    for image, key in config.segmentation_feature_map.items():
        camera = image.removeprefix(f"{OBS_IMAGES}.")
        ignored = {kind: key_of(camera) for kind, key_of in SCORE_KEYS.items() if key_of(camera) in features}
        if ignored and key not in features and config.segmenter != OBSERVED:
            kind, other = next(iter(ignored.items()))
            raise ValueError(
                f"segmentation_kind: found {config.segmentation_kind!r}, but {other!r} in the dataset, "
                f"which would be ignored. Set `--policy.segmentation_kind={kind}`, or precompute {key!r}."
            )
        if key not in features or image not in features:
            continue
        (height, width), (image_height, image_width) = map(_size, (features[key], features[image]))
        own = "perception" in (features[key].get("info") or {})  # so101-precompute covers the entire image
        if not own and not math.isclose(width * image_height, height * image_width, rel_tol=0.05):
            raise ValueError(
                f"{key}: found {width}x{height} scores of {image_width}x{image_height} images, expected "
                "their aspect ratio. Scores of a letterboxed image would end up on wrong patches. Compute "
                "them with `so101-precompute`, or remove their padding."
            )


def _size(feature: dict) -> tuple[int, int]:
    """Return (h, w) of an image or of scores in a dataset's metadata; scores may have no names of axes."""
    named = dict(zip(feature.get("names") or (), feature["shape"], strict=False))
    height, width = feature["shape"][-2:]
    return named.get("height", height), named.get("width", width)
