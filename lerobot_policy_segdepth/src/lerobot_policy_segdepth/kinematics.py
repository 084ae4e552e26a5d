# SPDX-License-Identifier: Apache-2.0
"""Tool poses, and one step of inverse kinematics towards a target."""

import math
from collections.abc import Sequence

import numpy as np

from lerobot_processor_so101 import arm
from lerobot_processor_so101.arm import GRIPPER

WRIST = [3, 4]
_DAMPING, _GAIN, _LARGEST = 0.1, 0.5, 0.5  # of the damped least squares; the last in rad


class ToolKinematics:
    """Kinematics of an arm that may be calibrated unlike the model; arguments as in `SegDepthConfig`."""

    def __init__(
        self,
        tool_point: Sequence[float],
        joint_signs: Sequence[float],
        joint_offsets: Sequence[float],
        base_frame: str = "mujoco",
    ) -> None:
        self._tool = np.array(tool_point, dtype=np.float64)
        self._signs, self._offsets = np.array(joint_signs)[:GRIPPER], np.array(joint_offsets)[:GRIPPER]
        # From MuJoCo's base frame to the policy's.
        rotation = {"mujoco": np.eye(3), "genesis": np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])}
        self._base = rotation[base_frame]

    def to_radians(self, joints: np.ndarray) -> np.ndarray:
        """Convert joints (..., 6) from the arm's degrees and percent to the model's radians."""
        joints = np.array(joints, dtype=np.float64)
        joints[..., :GRIPPER] = self._signs * (joints[..., :GRIPPER] + self._offsets)
        return arm.to_radians(joints)

    def from_radians(self, radians: np.ndarray) -> np.ndarray:
        """Convert joints (..., 6) from the model's radians to the arm's degrees and percent."""
        joints = arm.from_radians(radians)
        joints[..., :GRIPPER] = joints[..., :GRIPPER] / self._signs - self._offsets
        return joints

    def pose(self, joints: np.ndarray) -> np.ndarray:
        """Compute position [m] and roll, pitch, yaw [rad] of the tool, (N, 6), at joints (N, 6)."""
        return np.stack([self._pose(radians) for radians in self.to_radians(joints)])

    def step(self, joints: np.ndarray, target: np.ndarray, wrist: Sequence[float] = ()) -> np.ndarray:
        """Move by one step of damped least squares on the position alone.

        Args:
            joints: (6,) measured, in the arm's units.
            target: (3,) position of the tool [m].
            wrist: angles of wrist_flex and wrist_roll that are kept [deg]; empty moves them too.

        Returns:
            (6,) in the arm's units, inside the model's joint ranges; the gripper as it is.
        """
        radians = self.to_radians(joints)
        point = arm.gripper_point(radians, self._tool)
        error = self._base.T @ np.asarray(target) - point.position
        jacobian = point.linear  # (3, 5)
        if len(wrist):
            jacobian[:, WRIST] = 0
        step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + _DAMPING**2 * np.eye(3), error)
        radians[:GRIPPER] += _GAIN * np.clip(step, -_LARGEST, _LARGEST)
        if len(wrist):
            radians[WRIST] = np.radians(self._signs[WRIST] * (np.array(wrist) + self._offsets[WRIST]))
        radians[:GRIPPER] = np.clip(radians[:GRIPPER], arm.LOWER[:GRIPPER], arm.UPPER[:GRIPPER])
        return self.from_radians(radians)

    def _pose(self, radians: np.ndarray) -> np.ndarray:
        point = arm.gripper_point(radians, self._tool)
        position, rotation = self._base @ point.position, self._base @ point.rotation
        level = math.hypot(rotation[0, 0], rotation[1, 0])
        if level > 1e-6:
            roll, yaw = math.atan2(rotation[2, 1], rotation[2, 2]), math.atan2(rotation[1, 0], rotation[0, 0])
        else:  # gimbal lock
            roll, yaw = math.atan2(-rotation[1, 2], rotation[1, 1]), 0.0
        return np.array([*position, roll, math.atan2(-rotation[2, 0], level), yaw])
