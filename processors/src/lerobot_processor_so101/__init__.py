# SPDX-License-Identifier: Apache-2.0
"""Perception shared by the SO-101 policies: what masks and depth become before a network sees them.

Importing this package registers its processor steps, so that a checkpoint that names them can be loaded.
"""

from .disparity import depth_to_disparity
from .geometry import GEOMETRY_FEATURES, class_masks, mask_geometry
from .keys import depth_image_key, disparity_key, seg_image_key, seg_key
from .perception_step import MasksAndDisparityProcessorStep
from .resize import resize_area, resize_ids

__all__ = [
    "GEOMETRY_FEATURES",
    "MasksAndDisparityProcessorStep",
    "class_masks",
    "depth_image_key",
    "depth_to_disparity",
    "disparity_key",
    "mask_geometry",
    "resize_area",
    "resize_ids",
    "seg_image_key",
    "seg_key",
]
