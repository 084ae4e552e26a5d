# SPDX-License-Identifier: Apache-2.0
"""Perception shared by the SO-101 policies: what pictures, masks and depth become before a network sees them.

Importing this package registers its processor steps, so that a checkpoint that names them can be loaded. Models are
imported only where one is asked for: `lerobot_processor_so101.segmenters.make_segmenter`,
`lerobot_processor_so101.depth_models.make_depth_estimator`.
"""

from .averaging import averaged
from .check_observation_step import CheckObservationProcessorStep, TellFPSProcessorStep
from .checkpoint import CheckpointMixin, check_form, checkpoint_folder
from .checks import check_choices
from .class_map import CLASS_NAMES, ClassMap
from .crop_resize_step import CropResizeProcessorStep
from .deferred import PERCEPTION, Deferred, resolve_all, resolve_perception
from .disparity import depth_to_disparity
from .disparity_step import DisparityProcessorStep
from .geometry import GEOMETRY_FEATURES, class_masks, mask_geometry
from .guard_step import GuardProcessorStep
from .history import FrameHistory
from .identity import ModelIdentity, weights_hash
from .keys import (
    colour_cameras,
    depth_image_key,
    disparity_key,
    image_key,
    seg_image_key,
    seg_key,
    seg_logits_key,
    seg_top_k_key,
)
from .perception_step import OBSERVED
from .resize import resize_area, resize_ids, resize_linear
from .scores import Scores
from .segmentation_step import SegmentationProcessorStep
from .tokenizer_step import StoredTokenizerStep
from .training_dataset import training_dataset

__all__ = [
    "CLASS_NAMES",
    "GEOMETRY_FEATURES",
    "OBSERVED",
    "PERCEPTION",
    "CheckObservationProcessorStep",
    "CheckpointMixin",
    "ClassMap",
    "CropResizeProcessorStep",
    "Deferred",
    "DisparityProcessorStep",
    "FrameHistory",
    "GuardProcessorStep",
    "ModelIdentity",
    "Scores",
    "SegmentationProcessorStep",
    "StoredTokenizerStep",
    "TellFPSProcessorStep",
    "averaged",
    "check_choices",
    "check_form",
    "checkpoint_folder",
    "class_masks",
    "colour_cameras",
    "depth_image_key",
    "depth_to_disparity",
    "disparity_key",
    "image_key",
    "mask_geometry",
    "resize_area",
    "resize_ids",
    "resize_linear",
    "resolve_all",
    "resolve_perception",
    "seg_image_key",
    "seg_key",
    "seg_logits_key",
    "seg_top_k_key",
    "training_dataset",
    "weights_hash",
]
