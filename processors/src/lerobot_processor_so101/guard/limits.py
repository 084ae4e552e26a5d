# SPDX-License-Identifier: Apache-2.0
"""What an arm may be told, in numbers."""

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from .geometry import GRIPPER, JOINTS


@dataclass(frozen=True)
class GuardLimits:
    """Limits of commands. Body joints are in degrees, the gripper in percent of its opening.

    Args:
        lower, upper: of each of the six joints.
        velocity, acceleration: of the body joints [deg/s, deg/s²]; how fast a command may move on, and how much faster it
            may get. Slowing down, and stopping, is always allowed.
        gripper_velocity: [percent/s].
        workspace: [x, y, z, x, y, z] the corners of the box in which the point between the fingertips may be [m]; in the
            base's frame, x forward, y left, z up.
        table: height that forearm, hand and fingers stay above [m]; the base stands on 0.
        joint_offsets: what is added to an arm's degrees to get the model's [deg], for an arm whose calibrated zero is
            not in the middle.
        max_age: of the observation that a command answers [s]; older ones hold the arm.
        timeout: time without a command after which the arm is taken to stand [s].

    Raises:
        ValueError: a limit that cannot be, named with what was expected.
    """

    lower: tuple[float, ...] = (-110.0, -100.0, -97.0, -95.0, -160.0, 0.0)
    upper: tuple[float, ...] = (110.0, 100.0, 97.0, 95.0, 160.0, 100.0)
    velocity: float = 180.0
    acceleration: float = 3000.0
    gripper_velocity: float = 400.0
    workspace: tuple[float, ...] = (-0.1, -0.45, -0.01, 0.5, 0.45, 0.5)
    table: float = -0.005
    joint_offsets: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
    max_age: float = 0.5
    timeout: float = 0.5

    _SIZES: ClassVar[dict[str, int]] = {"lower": 6, "upper": 6, "workspace": 6, "joint_offsets": GRIPPER}

    def __post_init__(self) -> None:
        for name, size in self._SIZES.items():
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
            if len(getattr(self, name)) != size:
                raise ValueError(f"{name}: found {len(getattr(self, name))} numbers, expected {size}.")
        for field in fields(self):
            if not np.isfinite(getattr(self, field.name)).all():
                raise ValueError(f"{field.name}: found {getattr(self, field.name)}, expected finite numbers.")
        for name in ("velocity", "acceleration", "gripper_velocity", "max_age", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected more than 0.")
        for joint, low, high in zip(JOINTS, self.lower, self.upper, strict=True):
            if low >= high:
                raise ValueError(f"lower, upper: found {low} to {high} for {joint}, expected a range.")
        if any(low >= high for low, high in zip(self.workspace[:3], self.workspace[3:], strict=True)):
            raise ValueError(
                f"workspace: found {list(self.workspace)}, expected the lower corner and then the upper one."
            )

    @property
    def velocities(self) -> np.ndarray:
        """Of each joint, (6,)."""
        return np.array([self.velocity] * GRIPPER + [self.gripper_velocity])

    @property
    def accelerations(self) -> np.ndarray:
        """Of each joint, (6,). The gripper may start at once: its velocity is limit enough."""
        return np.array([self.acceleration] * GRIPPER + [np.inf])
