# SPDX-License-Identifier: Apache-2.0
"""What benchmarks on the emulated arm share: its robot's configuration, and a policy that moves it."""

from pathlib import Path
from typing import Any

from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

from lerobot_env_so101_workbench import SO101VirtualCameraConfig
from lerobot_env_so101_workbench.virtual_arm import VirtualArm
from lerobot_env_so101_workbench.virtual_calibration import FOLLOWER, LEADER, calibration_file
from lerobot_robot_so101 import SO101GuardedConfig
from tests.tiny import tiny_act

SIZE = {"height": 24, "width": 32, "fps": 30}


def robot_class(robot: str) -> Any:
    """The class behind `--robot.type`."""
    if robot == "so101_follower":
        return SO101Follower
    from lerobot_robot_so101.so101_guarded import SO101Guarded

    return SO101Guarded


def robot_config(robot: str, arm: VirtualArm) -> Any:
    """The robot on the port of the arm, with its cameras."""
    port = arm.config.follower_port
    size = {"height": arm.config.height, "width": arm.config.width, "fps": arm.config.camera_fps}
    cameras = {view: SO101VirtualCameraConfig(view=view, port=port, **size) for view in arm.config.cameras}
    made = SO101FollowerConfig if robot == "so101_follower" else SO101GuardedConfig
    return made(port=str(port), id=arm.config.id, cameras=cameras)


def act_config(folder: Path) -> Any:
    """LeRobot's ACT, small and untrained, saved in a folder: it asks for joints near 0, far from where the arm is."""
    return tiny_act(folder, (SIZE["height"], SIZE["width"]), ("top", "wrist"), chunk=15)


def close(arm: VirtualArm) -> None:
    """Stop the arm; its calibration files go with it."""
    arm.close()
    for device in (FOLLOWER, LEADER):
        calibration_file(device, arm.config.id).unlink(missing_ok=True)
