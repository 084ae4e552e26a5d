# SPDX-License-Identifier: Apache-2.0
"""The guarded follower on an emulated arm whose time passes on demand only."""

import numpy as np
import pytest
from lerobot.motors.feetech import feetech
from lerobot.robots import make_robot_from_config

from lerobot_env_so101_workbench.virtual_arm import calibration as virtual_calibration
from lerobot_env_so101_workbench.virtual_arm.arm import VirtualArm, VirtualArmConfig
from lerobot_env_so101_workbench.virtual_arm.joints import STEP
from lerobot_processor_so101.arm import JOINTS, from_radians
from lerobot_processor_so101.guard import Guard
from lerobot_robot_so101 import SO101GuardedConfig
from tests.slow_machine import set_timeout


class Clock:
    """A clock that tests advance."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def slow_machine(monkeypatch):
    """Let the driver wait 2 s for replies: its 50 ms are too short on a busy machine."""
    monkeypatch.setattr(feetech, "patch_setPacketTimeout", set_timeout)


@pytest.fixture
def virtual_arm(tmp_path, monkeypatch, slow_machine):
    """An arm whose time passes in `advance` only."""
    from lerobot.robots import robot

    for module in (robot, virtual_calibration):
        monkeypatch.setattr(module, "HF_LEROBOT_CALIBRATION", tmp_path / "calibration")
    arm = VirtualArm(VirtualArmConfig(leader="none", follower_port=tmp_path / "follower"))
    arm.plug_in()
    yield arm
    arm.close()


@pytest.fixture
def connect(virtual_arm):
    """`connect(...)`: the guarded robot on the port of the arm, and the clock of its guard."""
    robots = []

    def make(**options):
        port = str(virtual_arm.follower.bus.port)
        robot = make_robot_from_config(SO101GuardedConfig(port=port, id="virtual", **options))
        robots.append(robot)
        robot.connect()
        clock = Clock()
        standing = robot.guard._last.joints
        robot.guard = Guard(robot.limits, clock)
        robot.guard.initialise(standing)
        return robot, clock

    yield make
    for robot in robots:
        if robot.is_connected:
            robot.disconnect()


class Witness:
    """Records where the joints of the simulated arm really are, which no driver can read.

    Args:
        arm: the emulated arm.
        robot, clock: connected to it, and the clock of its guard.

    Attributes:
        joints: positions after every physics step, (T, 6) [deg, percent].
    """

    def __init__(self, arm, robot, clock) -> None:
        self._arm, self._robot, self._clock = arm, robot, clock
        self.joints: list[np.ndarray] = []

    def run(self, seconds, fps, command, observe=True):
        """Send `command(t)`, (6,), at `fps` after an observation, as LeRobot's loops do."""
        for tick in range(round(seconds * fps)):
            self._clock.now += 1 / fps
            if observe:
                self._robot.get_observation()
            goals = np.asarray(command(tick / fps), float).tolist()
            self._robot.send_action({f"{joint}.pos": goal for joint, goal in zip(JOINTS, goals, strict=True)})
            self._robot.bus.ping("gripper")  # commands have no reply; that to a ping comes after them
            for _ in range(round(1 / fps / STEP)):
                self._arm.advance(STEP)
                self.joints.append(from_radians(self._arm.follower.joints.radians))

    def speed(self, window=0.1):
        """Return the highest speed of each joint over windows of so many seconds, (6,) [1/s]."""
        path, steps = np.array(self.joints), round(window / STEP)
        return np.abs(path[steps:] - path[:-steps]).max(0) / (steps * STEP)


@pytest.fixture
def witness(virtual_arm):
    return lambda robot, clock: Witness(virtual_arm, robot, clock)
