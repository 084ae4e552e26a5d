# SPDX-License-Identifier: Apache-2.0
"""`--policy.type=segdepth`: masks and disparity to actions. Its model is imported when LeRobot builds one."""

import lerobot_processor_so101  # noqa: F401  registers the steps

from . import actions  # noqa: F401  registers the steps
from .configuration_segdepth import SegDepthConfig

__all__ = ["SegDepthConfig"]
