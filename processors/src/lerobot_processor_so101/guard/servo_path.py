# SPDX-License-Identifier: Apache-2.0
"""Predict how servos bring a moving arm to a goal.

Each servo changes its speed with limited acceleration, by itself. So an arm does not move to a goal in a
straight line of joint positions.
"""

from typing import NamedTuple

import numpy as np

from ..arm import GRIPPER
from .limits import GuardLimits

_STEP, _STEPS = 0.05, 4  # s, and their number
_LARGEST_ACCELERATION = 254 * 100 * 360 / 4096  # deg/s², of an STS3215: 254 units of 100 steps/s²


class Motion(NamedTuple):
    """Measured motion of an arm.

    Attributes:
        joints: (6,) positions [deg; gripper in percent].
        velocity: (6,) [deg/s, percent/s].
    """

    joints: np.ndarray
    velocity: np.ndarray


def stops(motion: Motion, limits: GuardLimits) -> np.ndarray:
    """Return where the arm is, and where it comes to rest if it brakes now, (2, 6)."""
    braking = motion.velocity * np.abs(motion.velocity) / (2 * _acceleration(limits))
    return np.stack([motion.joints, motion.joints + braking])


def servo_path(motion: Motion, goals: np.ndarray, limits: GuardLimits) -> np.ndarray:
    """Predict poses on the way to goals, for the next 0.2 s.

    Args:
        motion: of the arm now.
        goals: (K, 6) [deg; gripper in percent]; the gripper is taken to be there.
        limits: velocity and acceleration of the servos.

    Returns:
        (T, K, 6) poses.
    """
    # 1. speeds in deg per half step; changes of speed in a step
    half = _STEP / 2
    change, largest = _acceleration(limits) * _STEP * half, limits.velocity * half
    distance = goals[:, :GRIPPER] - motion.joints[:GRIPPER]
    speed = motion.velocity[:GRIPPER] * half
    path = np.empty((_STEPS, *goals.shape))
    path[..., GRIPPER] = goals[:, GRIPPER]
    for pose in path:
        # 2. towards the highest speed from which a joint can still stop at the goal
        braking = np.sqrt(change * np.abs(distance) + change**2 / 4) - change / 2
        wanted = np.copysign(np.minimum(braking, largest), distance)
        last, speed = speed, np.minimum(np.maximum(wanted, speed - change), speed + change)
        # 3. a step at the mean of both speeds
        distance = distance - (last + speed)
        pose[:, :GRIPPER] = distance
    path[..., :GRIPPER] = goals[:, :GRIPPER] - path[..., :GRIPPER]
    return path


def _acceleration(limits: GuardLimits) -> float:
    # Not what is written to the servos, which is less: an arm that catches up exceeds it.
    return min(limits.acceleration, _LARGEST_ACCELERATION)
