# SPDX-License-Identifier: Apache-2.0
"""`--robot.cameras="{top: {type: so101_virtual, view: top, ...}}"`: what a virtual arm's camera sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lerobot.cameras.configs import CameraConfig

from .names import FOLLOWER_PORT


@CameraConfig.register_subclass("so101_virtual")
@dataclass(kw_only=True)
class SO101VirtualCameraConfig(CameraConfig):
    """A camera of a running `so101-virtual-arm`.

    Args:
        width, height, fps: as the arm was started with [pixels, pixels, 1/s]; None takes what it has, but LeRobot's
            robots want numbers.
        view: which camera: top, wrist or front.
        port: the follower's port, which says which arm.
    """

    view: str
    port: Path = Path(FOLLOWER_PORT)
