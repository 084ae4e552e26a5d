# SPDX-License-Identifier: Apache-2.0
"""`--policy.type=segvla`: SmolVLA with segmentation cues. Its model is imported when LeRobot builds one."""

import lerobot_processor_so101  # noqa: F401  registers the steps

from .configuration_segvla import SegVLAConfig
from .segmentation_step import SegVLAAddSegmentationStep

__all__ = ["SegVLAAddSegmentationStep", "SegVLAConfig"]
