# SPDX-License-Identifier: Apache-2.0
"""Robots on an emulated arm."""

from typing import Any

import numpy as np
from lerobot.motors.feetech import feetech
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

from lerobot_env_so101_workbench import SO101VirtualCameraConfig
from lerobot_env_so101_workbench.virtual_arm.arm import VirtualArm
from lerobot_env_so101_workbench.virtual_arm.calibration import FOLLOWER, LEADER, calibration_file
from lerobot_env_so101_workbench.virtual_arm.joints import STEP
from lerobot_robot_so101 import SO101GuardedConfig
from lerobot_robot_so101.so101_guarded import SO101Guarded

WINDOW_S, FASTER = 0.1, 1.2  # s that a speed is measured over, and by how much it may exceed its limit

ROBOTS: dict[str, tuple[Any, Any]] = {
    "so101_guarded": (SO101Guarded, SO101GuardedConfig),
    "so101_follower": (SO101Follower, SO101FollowerConfig),
}


def robot_config(robot: str, arm: VirtualArm) -> Any:
    """Return the configuration of a robot on the port of the arm, with its cameras."""
    port = arm.config.follower_port
    size = {"height": arm.config.height, "width": arm.config.width, "fps": arm.config.camera_fps}
    cameras = {view: SO101VirtualCameraConfig(view=view, port=port, **size) for view in arm.config.cameras}
    return ROBOTS[robot][1](port=str(port), id=arm.config.id, cameras=cameras)


def speeds(path: np.ndarray) -> np.ndarray:
    """Return the speed of each joint over 0.1 s, from its position after every physics step, (T, 6)."""
    window = round(WINDOW_S / STEP)
    return np.abs(path[window:] - path[:-window]) / WINDOW_S


def close(arm: VirtualArm) -> None:
    """Stop the arm and delete its calibration files."""
    arm.close()
    for device in (FOLLOWER, LEADER):
        calibration_file(device, arm.config.id).unlink(missing_ok=True)


def wait_for_replies(seconds: float = 2.0) -> None:
    """Let the driver of this process wait longer for replies: its 50 ms are too short on a busy machine."""

    def set_timeout(port: Any, packet_length: int) -> None:
        port.packet_start_time, port.packet_timeout = port.getCurrentTime(), 1000 * seconds  # ms

    feetech.patch_setPacketTimeout = set_timeout
