# SPDX-License-Identifier: Apache-2.0
"""Limits of the commands to an arm."""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from ..arm import GRIPPER, JOINTS

# Of the motion that servos plan for themselves. An arm that cannot follow it lags, and catches up faster.
_SERVO_VELOCITY = 0.85  # of the velocity limit
_SERVO_ACCELERATION = 1500.0  # deg/s²: about what an outstretched arm can follow
_SIZES = {"lower": 6, "upper": 6, "workspace": 6, "joint_offsets": GRIPPER}


@dataclass(frozen=True)
class GuardLimits:
    """Limits of commands. Body joints are in degrees, the gripper in percent of its opening.

    Args:
        lower: lower limit of each of the six joints [deg, percent].
        upper: upper limit of each of the six joints [deg, percent].
        velocity: velocity limit of the body joints [deg/s].
        acceleration: acceleration limit of the body joints [deg/s²]. Slowing down and stopping are always
            allowed.
        gripper_velocity: limit of the gripper [percent/s].
        workspace: [x, y, z, x, y, z], lower and upper corner of the box that the tip of the static finger
            stays in [m]; in the base's frame, x forward, y left, z up.
        table: height that forearm, hand and fingers stay above [m]; the base is at 0.

    Expert options, with defaults that rarely need a change:
        joint_offsets: added to the arm's degrees to get the model's [deg], for an arm whose calibrated zero
            is not in the middle.
        tracking_error: distance by which a goal may lead the measured position, in addition to what the joint
            moves in 0.05 s at its velocity limit [deg, percent]. It must exceed the sag under load.
        max_age: largest age of an observation when the first command after it is sent [s]; later commands
            hold the arm until the next observation.
        max_blind: longest time that commands may go on without a new observation [s], as homing does.
        timeout: time without a command after which the arm is taken to be at rest [s].

    Raises:
        ValueError: if a limit is not finite, has a wrong length, or leaves no range.
    """

    lower: tuple[float, ...] = (-110.0, -100.0, -97.0, -95.0, -160.0, 0.0)
    upper: tuple[float, ...] = (110.0, 100.0, 97.0, 95.0, 160.0, 100.0)
    velocity: float = 180.0
    acceleration: float = 3000.0
    gripper_velocity: float = 400.0
    workspace: tuple[float, ...] = (-0.1, -0.45, -0.01, 0.5, 0.45, 0.5)
    table: float = -0.005
    joint_offsets: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
    tracking_error: float = 5.0
    max_age: float = 0.5
    max_blind: float = 5.0
    timeout: float = 0.5

    def __post_init__(self) -> None:
        for name, size in _SIZES.items():
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
            if len(getattr(self, name)) != size:
                raise ValueError(f"{name}: found {len(getattr(self, name))} numbers, expected {size}.")
        for field in fields(self):
            if not np.isfinite(getattr(self, field.name)).all():
                raise ValueError(f"{field.name}: found {getattr(self, field.name)}, expected finite numbers.")
        positive = ("velocity", "acceleration", "gripper_velocity", "tracking_error")
        for name in (*positive, "max_age", "max_blind", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected more than 0.")
        if self.max_blind < self.max_age:
            raise ValueError(f"max_blind: found {self.max_blind}, expected at least max_age, {self.max_age}.")
        for joint, low, high in zip(JOINTS, self.lower, self.upper, strict=True):
            if low >= high:
                raise ValueError(f"lower, upper: found {low} to {high} for {joint}, expected a range.")
        if any(low >= high for low, high in zip(self.workspace[:3], self.workspace[3:], strict=True)):
            raise ValueError(
                f"workspace: found {list(self.workspace)}, expected the lower corner and then the upper one."
            )

    @cached_property
    def velocities(self) -> np.ndarray:
        """Velocity limit of each joint, (6,)."""
        return np.array([self.velocity] * GRIPPER + [self.gripper_velocity])

    @cached_property
    def accelerations(self) -> np.ndarray:
        """Acceleration limit of each joint, (6,); none of the gripper, whose velocity limit suffices."""
        return np.array([self.acceleration] * GRIPPER + [np.inf])

    @cached_property
    def servo_velocities(self) -> np.ndarray:
        """Velocity limit that is written to each servo, (6,)."""
        return self.velocities * ([_SERVO_VELOCITY] * GRIPPER + [1.0])

    @cached_property
    def servo_accelerations(self) -> np.ndarray:
        """Acceleration limit that is written to each servo, (6,); none of the gripper."""
        return np.minimum(self.accelerations, [_SERVO_ACCELERATION] * GRIPPER + [np.inf])

    @cached_property
    def joint_range(self) -> np.ndarray:
        """Lowest and highest position of each joint, (2, 6)."""
        return np.array([self.lower, self.upper])

    @cached_property
    def workspace_corners(self) -> np.ndarray:
        """Lower and upper corner of the workspace, (2, 3) [m]."""
        return np.array(self.workspace).reshape(2, 3)

    @cached_property
    def model_offsets(self) -> np.ndarray:
        """Offsets of all joints, (6,); 0 of the gripper."""
        return np.array([*self.joint_offsets, 0.0])
