# SPDX-License-Identifier: Apache-2.0
"""Pipelines around the segdepth policy.

In: the observation is checked; it is cropped, before or after models look; ids and disparity are added, or the promise
of them; joints get a tool pose where one is asked for; actions become those of the policy. Out: the other way.
"""

from collections.abc import Sequence
from typing import Any

from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    ProcessorStep,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from torch import Tensor

from lerobot_processor_so101 import (
    CheckObservationProcessorStep,
    CropResizeProcessorStep,
    DisparityProcessorStep,
    SegmentationProcessorStep,
    disparity_key,
    image_key,
    seg_key,
    training_dataset,
)
from lerobot_processor_so101.perception_step import PerceptionStep

from .actions import ToActionSpaceStep, ToJointsStep, ToolPoseStep, arm_of
from .configuration_segdepth import SEGMENTER, SegDepthConfig

_SQUARE = 0.02  # how far from square a crop may be


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
        dataset_meta: says which models made the masks and disparity of the dataset, if they were precomputed; by default
            that of the training.

    Returns:
        The preprocessor, which gives ids and disparity or the promise of them, and the postprocessor, which
        returns joint targets in the arm's units on the CPU.

    Raises:
        ValueError: the dataset has another rate or shape of pictures, or its masks were made by other models or have
            other classes than the configuration says.
    """
    dataset_meta = training_dataset(config, dataset_meta)
    if dataset_meta is not None and dataset_meta.fps != config.fps:
        raise ValueError(
            f"fps: found {dataset_meta.fps} Hz in the dataset, expected {config.fps} Hz. Train for its rate: "
            f"`--policy.fps={dataset_meta.fps}`, and for a stack of frames `--policy.stack_period`."
        )
    steps = make_default_policy_processor_steps(config, dataset_stats, normalizer_device=config.device)
    features = dataset_meta.features if dataset_meta else {}
    before, after = _action_steps(config)
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            steps.to_device,
            _check(config, features),
            *_perception(config, features),
            *before,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, *after, steps.to_cpu],
    )


def _check(config: SegDepthConfig, features: dict[str, dict]) -> ProcessorStep:
    sizes = {image_key(camera): _picture_size(config, camera, features) for camera in config.cameras}
    aspects = {key: size[1] / size[0] for key, size in sizes.items() if size}
    return CheckObservationProcessorStep(fps=config.fps, aspects=aspects, max_still=config.max_still)


def _picture_size(config: SegDepthConfig, camera: str, features: dict[str, dict]) -> Sequence[int] | None:
    """(h, w) of the pictures that it learns from, or that what it learns from was made of; None if nothing says so."""
    key, declared = image_key(camera), config.input_features or {}
    if key in declared and (key in features or not features):
        return declared[key].shape[-2:]
    made = (features.get(disparity_key(camera)) or {}).get("info") or {}
    return made.get("pictures")


def _perception(config: SegDepthConfig, features: dict[str, dict]) -> list[ProcessorStep]:
    """The steps that see; none where the network looks at colours."""
    if config.encoder == "rgb":
        return []
    size = [config.image_size, config.image_size]
    crop_later = bool(config.crop) and not config.crop_first
    seen = _frame_size(config) if crop_later else size
    models = _models(config, seen, features)
    if not config.crop:
        return list(models)
    _check_crop(config, features)
    crop = CropResizeProcessorStep(
        list(config.cameras),
        crop=list(config.crop),
        image_size=size if crop_later else None,
        interpolation=config.interpolation,
    )
    return [*models, crop] if crop_later else [crop, *models]


def _models(config: SegDepthConfig, size: list[int], features: dict[str, dict]) -> list[PerceptionStep]:
    cameras, own_disparity = list(config.cameras), config.depth == SEGMENTER
    common: dict[str, Any] = {"color_order": config.color_order, "whole": config.whole_disparity}
    segmentation = SegmentationProcessorStep(
        cameras,
        size,
        segmenter=config.segmenter,
        classes=list(config.classes),
        disparity=own_disparity,
        **common,
    )
    models: list[PerceptionStep] = [segmentation]
    if not own_disparity:
        models.append(
            DisparityProcessorStep(
                cameras,
                size,
                depth=config.depth,
                interpolation=config.interpolation,  # type: ignore[arg-type]  # the configuration has checked it
                **common,
            )
        )
    for step in models:
        step.check_dataset(features)
    segmentation.check_class_names(config.class_names, features)
    _check_disparity(config, features)
    return models


def _frame_size(config: SegDepthConfig) -> list[int]:
    """Size of the pictures of all cameras, on which a crop comes later."""
    sizes = {camera: list(config.frame_size(camera)) for camera in config.cameras}
    first = sizes[config.cameras[0]]
    if any(size != first for size in sizes.values()):
        raise ValueError(f"cameras: found pictures of {sizes} (h, w), expected one size to crop from.")
    return first


def _check_crop(config: SegDepthConfig, features: dict[str, dict]) -> None:
    """A crop must leave a square, on pictures and on what is precomputed from them."""
    for camera in config.cameras:
        height, width = config.frame_size(camera)
        if abs(width * config.crop[3] / (height * config.crop[2]) - 1) > _SQUARE:
            raise ValueError(
                f"crop: found {width}x{height} pixels of {camera!r}, of which {config.crop} leaves no square, expected "
                "640x480 or another 4:3. Without a crop: `--policy.crop='[]'`; or precompute at the camera's size: "
                "`so101-precompute --height=480 --width=640`."
            )
        made = [key for key in (seg_key(camera), disparity_key(camera)) if key in features]
        if made and config.crop_first:
            raise ValueError(
                f"crop_first: found {made[0]!r} in the dataset, which was made from whole pictures, expected "
                "pictures, or `--policy.crop_first=false`."
            )


def _check_disparity(config: SegDepthConfig, features: dict[str, dict]) -> None:
    """Stored disparity must have lost its fractions just as what is seen later will."""
    expected = config.whole_disparity
    for key in map(disparity_key, config.cameras):
        found = bool(((features.get(key) or {}).get("info") or {}).get("whole"))
        if key in features and found != expected:
            raise ValueError(
                f"whole_disparity: found {found} for {key!r} in the dataset, expected {expected}: "
                f"`so101-precompute --whole_disparity={str(expected).lower()}`."
            )


def _action_steps(config: SegDepthConfig) -> tuple[list[ProcessorStep], list[ProcessorStep]]:
    """What stands before the normaliser, and after the unnormaliser."""
    before: list[ProcessorStep] = [ToolPoseStep(arm=arm_of(config))] if config.uses_kinematics else []
    if config.action_space == "joints":
        return before, []
    scale = list(config.joint_scale) if config.action_space == "joint_deltas" else [config.tool_scale]
    common: dict[str, Any] = {"arm": arm_of(config), "space": config.action_space, "scale": scale}
    to_space = ToActionSpaceStep(reference=config.tool_reference, **common)
    to_joints = ToJointsStep(lock_wrist=list(config.lock_wrist), relative_step=to_space, **common)
    return [*before, to_space], [to_joints]
