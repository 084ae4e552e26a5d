# SPDX-License-Identifier: Apache-2.0
"""Pipelines of the segdepth policy.

The preprocessor checks the observation, crops it before or after perception, adds ids and disparity (deferred
if a model must run), adds a tool pose if the policy needs one, and converts actions to the policy's action
space. The postprocessor converts them back.
"""

from collections.abc import Sequence
from typing import Any

from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.processor import ProcessorStep

from lerobot_processor_so101 import (
    OBSERVED,
    CheckObservationProcessorStep,
    CropResizeProcessorStep,
    DisparityProcessorStep,
    RolesProcessorStep,
    SegmentationProcessorStep,
    disparity_key,
    image_key,
    seg_key,
    training_dataset,
)
from lerobot_processor_so101.policy.pipeline import Pipelines, Stats, make_pipelines
from lerobot_processor_so101.steps.perception import PerceptionStep

from .actions import ToActionSpaceStep, ToJointsStep, ToolPoseStep, arm_options
from .configuration_segdepth import SEGMENTER, SegDepthConfig

_SQUARE_TOLERANCE = 0.02  # of the aspect ratio of a crop


def make_segdepth_pre_post_processors(
    config: SegDepthConfig,
    dataset_stats: Stats | None = None,
    dataset_meta: LeRobotDatasetMetadata | None = None,
) -> Pipelines:
    """Build the pipelines of a new policy, to joint targets in the arm's units; see `make_pipelines`.

    Raises:
        ValueError: if the dataset has another rate or aspect ratio of images than the policy, or its masks
            and disparity have other classes or come from other models than configured.
    """
    dataset_meta = training_dataset(config, dataset_meta)
    if dataset_meta is not None and dataset_meta.fps != config.fps:
        raise ValueError(
            f"fps: found {dataset_meta.fps} Hz in the dataset, expected {config.fps} Hz. Train for its rate: "
            f"`--policy.fps={dataset_meta.fps}`, and for a stack of frames `--policy.stack_period`."
        )
    features = dataset_meta.features if dataset_meta else {}
    to_policy, to_arm = _action_steps(config)
    return make_pipelines(
        config,
        dataset_stats,
        dataset_meta=dataset_meta,
        before_normalizer=[
            _check_step(config, features),
            *_perception_steps(config, features),
            *_roles_steps(config),
            *to_policy,
        ],
        after_unnormalizer=to_arm,
    )


def _check_step(config: SegDepthConfig, features: dict[str, dict]) -> CheckObservationProcessorStep:
    ids: dict[str, int] = {}  # of the watched classes, if an environment's masks must have them
    if config.segmenter == OBSERVED and not config.roles and config.encoder != "rgb":
        ids = dict(zip(config.watched_classes, config.class_ids, strict=True))
    sizes = {image_key(camera): _image_size(config, camera, features) for camera in config.cameras}
    aspects = {key: size[1] / size[0] for key, size in sizes.items() if size}
    return CheckObservationProcessorStep(config.fps, aspects, config.max_still, ids)


def _image_size(config: SegDepthConfig, camera: str, features: dict[str, dict]) -> Sequence[int] | None:
    """(h, w) of the dataset's images, or of those its disparity was precomputed from; None if unknown."""
    key, declared = image_key(camera), config.input_features or {}
    if key in declared and (key in features or not features):
        return declared[key].shape[-2:]
    return _info(features, disparity_key(camera)).get("pictures")


def _info(features: dict[str, dict], key: str) -> dict[str, Any]:
    return (features.get(key) or {}).get("info") or {}


def _perception_steps(config: SegDepthConfig, features: dict[str, dict]) -> list[ProcessorStep]:
    """Build the steps that add and crop ids and disparity; none for the RGB encoder."""
    if config.encoder == "rgb":
        return []
    size = [config.image_size, config.image_size]
    if not config.crop:
        return list(_models(config, size, features))
    _check_crop(config, features)
    options: dict[str, Any] = {"crop": config.crop, "interpolation": config.interpolation}
    if config.crop_first:
        return [CropResizeProcessorStep(config.cameras, **options), *_models(config, size, features)]
    crop = CropResizeProcessorStep(config.cameras, image_size=size, **options)
    return [*_models(config, _common_frame_size(config), features), crop]


def _roles_steps(config: SegDepthConfig) -> list[ProcessorStep]:
    if not config.roles:
        return []
    options = (config.watched_classes, config.roles, config.class_names, config.synonyms)
    return [RolesProcessorStep(*options, observed=config.segmenter == OBSERVED)]


def _models(config: SegDepthConfig, size: list[int], features: dict[str, dict]) -> list[PerceptionStep]:
    """Build the perception steps for outputs of (h, w) = `size`, and check the dataset against them."""
    own_disparity = config.depth == SEGMENTER
    common: dict[str, Any] = {"color_order": config.color_order, "whole": config.whole_disparity}
    named: dict[str, Any] = {"segmenter": config.segmenter, "classes": config.classes}
    segmentation = SegmentationProcessorStep(config.cameras, size, disparity=own_disparity, **named, **common)
    models: list[PerceptionStep] = [segmentation]
    if not own_disparity:
        common |= {"depth": config.depth, "interpolation": config.interpolation}
        models.append(DisparityProcessorStep(config.cameras, size, **common))
    for step in models:
        step.check_dataset(features)
    segmentation.check_class_names(config.class_names, features)
    _check_disparity(config, features)
    return models


def _common_frame_size(config: SegDepthConfig) -> list[int]:
    """(h, w) of the frames of all cameras, from which a later crop is cut."""
    sizes = {camera: list(config.frame_size(camera)) for camera in config.cameras}
    first, *others = sizes.values()
    if any(size != first for size in others):
        raise ValueError(f"cameras: found images of {sizes} (h, w), expected one size to crop from.")
    return first


def _check_crop(config: SegDepthConfig, features: dict[str, dict]) -> None:
    """Refuse crops that are not square, and crops before precomputed perception."""
    for camera in config.cameras:
        height, width = config.frame_size(camera)
        if abs(width * config.crop[3] / (height * config.crop[2]) - 1) > _SQUARE_TOLERANCE:
            raise ValueError(
                f"crop: found {width}x{height} pixels of {camera!r}, of which {config.crop} is no square, "
                "expected 640x480 or another 4:3. Without a crop: `--policy.crop='[]'`; or precompute at the "
                "camera's size: `so101-precompute --height=480 --width=640`."
            )
        stored = [key for key in (seg_key(camera), disparity_key(camera)) if key in features]
        if stored and config.crop_first:
            raise ValueError(
                f"crop_first: found {stored[0]!r} in the dataset, precomputed from uncropped images, "
                "expected images, or `--policy.crop_first=false`."
            )


def _check_disparity(config: SegDepthConfig, features: dict[str, dict]) -> None:
    """Refuse stored disparity that is floored if the policy's is not, or the reverse."""
    expected = config.whole_disparity
    for key in map(disparity_key, config.cameras):
        found = _info(features, key).get("whole", False)
        if key in features and found != expected:
            raise ValueError(
                f"whole_disparity: found {found} for {key!r} in the dataset, expected {expected}: "
                f"`so101-precompute --whole_disparity={str(expected).lower()}`."
            )


def _action_steps(config: SegDepthConfig) -> tuple[list[ProcessorStep], list[ProcessorStep]]:
    """Build the steps before the normaliser, and after the unnormaliser."""
    before: list[ProcessorStep] = [ToolPoseStep(arm=arm_options(config))] if config.uses_kinematics else []
    if config.action_space == "joints":
        return before, []
    scale = config.joint_scale if config.action_space == "joint_deltas" else [config.tool_scale]
    common: dict[str, Any] = {"arm": arm_options(config), "space": config.action_space, "scale": scale}
    to_policy = ToActionSpaceStep(reference=config.tool_reference, **common)
    to_joints = ToJointsStep(lock_wrist=config.lock_wrist, relative_step=to_policy, **common)
    return [*before, to_policy], [to_joints]
