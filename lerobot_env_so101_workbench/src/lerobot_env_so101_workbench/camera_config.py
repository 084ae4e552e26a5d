# SPDX-License-Identifier: Apache-2.0
"""`--robot.cameras="{top: {type: so101_virtual, view: top, ...}}"`: a camera of a virtual arm."""

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
        width, height, fps: those of the arm [pixels, pixels, 1/s]; None accepts any, but not in robots.
        view: top, wrist or front.
        port: the follower's port, which identifies the arm.
    """

    view: str
    port: Path = Path(FOLLOWER_PORT)
