# SPDX-License-Identifier: Apache-2.0
"""Perception and safety that the SO-101 policies share.

Importing this package registers its processor steps, so that checkpoints that name them load. Models are
imported only where they are used, by `models.make_segmenter` and `models.depth.make_depth_estimator`.
"""

from .config_checks import check_choices
from .guard.step import GuardProcessorStep
from .log_filter import shorten_notices
from .perception.class_map import CLASS_NAMES, ClassMap
from .perception.deferred import PERCEPTION, Deferred, resolve_all, resolve_perception
from .perception.disparity import depth_to_disparity
from .perception.history import FrameHistory
from .perception.identity import ModelIdentity, weights_hash
from .perception.keys import (
    depth_image_key,
    disparity_key,
    image_key,
    rgb_cameras,
    seg_image_key,
    seg_key,
    seg_logits_key,
    seg_top_k_key,
)
from .perception.mask_geometry import GEOMETRY_FEATURES, class_masks, geometry_of_masks, mask_geometry
from .perception.resize import resize_area, resize_ids, resize_linear
from .perception.scores import Scores
from .policy.checkpoint import CheckpointMixin, check_architecture, checkpoint_folder
from .policy.dataset_lookup import DatasetLookupMixin
from .policy.ema import averaged
from .policy.training_dataset import training_dataset
from .steps.check_observation import (
    AddClassNamesProcessorStep,
    AddFPSProcessorStep,
    CheckObservationProcessorStep,
)
from .steps.crop_resize import CropResizeProcessorStep
from .steps.dataset_lookup import DatasetLookupProcessorStep
from .steps.disparity import DisparityProcessorStep
from .steps.perception import OBSERVED
from .steps.roles import RolesProcessorStep
from .steps.segmentation import SegmentationProcessorStep
from .steps.tokenizer import StoredTokenizerStep

__all__ = [
    "CLASS_NAMES",
    "GEOMETRY_FEATURES",
    "OBSERVED",
    "PERCEPTION",
    "AddClassNamesProcessorStep",
    "AddFPSProcessorStep",
    "CheckObservationProcessorStep",
    "CheckpointMixin",
    "ClassMap",
    "CropResizeProcessorStep",
    "DatasetLookupMixin",
    "DatasetLookupProcessorStep",
    "Deferred",
    "DisparityProcessorStep",
    "FrameHistory",
    "GuardProcessorStep",
    "ModelIdentity",
    "RolesProcessorStep",
    "Scores",
    "SegmentationProcessorStep",
    "StoredTokenizerStep",
    "averaged",
    "check_architecture",
    "check_choices",
    "checkpoint_folder",
    "class_masks",
    "depth_image_key",
    "depth_to_disparity",
    "disparity_key",
    "geometry_of_masks",
    "image_key",
    "mask_geometry",
    "resize_area",
    "resize_ids",
    "resize_linear",
    "resolve_all",
    "resolve_perception",
    "rgb_cameras",
    "seg_image_key",
    "seg_key",
    "seg_logits_key",
    "seg_top_k_key",
    "training_dataset",
    "weights_hash",
]

shorten_notices()
