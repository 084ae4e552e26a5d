# SPDX-License-Identifier: Apache-2.0
"""Where the tool point is, and one step of inverse kinematics towards a target. MuJoCo computes it."""

import math
from collections.abc import Sequence
from functools import cache

import mujoco
import numpy as np

from lerobot_processor_so101.arm_model import arm_model_path

BODY = 5  # joints without the gripper
WRIST = [3, 4]
_CLOSED, _SPAN = math.radians(-10), math.radians(110)  # the gripper's 0 and what its 100 percent are
_DAMPING, _GAIN, _LARGEST = 0.1, 0.5, 0.5  # of the damped least squares; the last in rad


@cache
def _model() -> mujoco.MjModel:
    """The arm's; nothing here changes it, and reading it takes a while, so that all steps share one."""
    return mujoco.MjModel.from_xml_path(str(arm_model_path()))


class ToolKinematics:
    """The SO-101's kinematic model.

    Args:
        tool_point: (3,) in the gripper's frame [m].
        joint_signs, joint_offsets: (6,) the model's degrees are sign * (the arm's degrees + offset).
        base_frame: "mujoco", x forward and y left, or "genesis", y forward and x right.

    Raises:
        FileNotFoundError: the model is not installed.
    """

    def __init__(
        self,
        tool_point: Sequence[float],
        joint_signs: Sequence[float],
        joint_offsets: Sequence[float],
        base_frame: str = "mujoco",
    ) -> None:
        self._model = _model()
        self._data = mujoco.MjData(self._model)
        self._gripper = self._model.body("gripper").id
        self._tool = np.array(tool_point, dtype=np.float64)
        self._signs, self._offsets = np.array(joint_signs), np.array(joint_offsets)
        # From MuJoCo's base frame to the one that the policy speaks of.
        turn = {"mujoco": np.eye(3), "genesis": np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])}
        self._base = turn[base_frame]

    def to_radians(self, joints: np.ndarray) -> np.ndarray:
        """Joints (..., 6) in the arm's degrees and percent to the model's radians."""
        radians = np.radians(self._signs * (np.asarray(joints, dtype=np.float64) + self._offsets))
        radians[..., BODY] = _CLOSED + np.asarray(joints)[..., BODY] / 100 * _SPAN
        return radians

    def from_radians(self, radians: np.ndarray) -> np.ndarray:
        """The inverse of `to_radians`."""
        joints = np.degrees(radians) / self._signs - self._offsets
        joints[..., BODY] = (np.asarray(radians)[..., BODY] - _CLOSED) / _SPAN * 100
        return joints

    def pose(self, joints: np.ndarray) -> np.ndarray:
        """Place [m] and roll, pitch, yaw [rad] of the tool at joints (N, 6), (N, 6)."""
        return np.stack([self._pose(radians) for radians in self.to_radians(joints)])

    def step(self, joints: np.ndarray, target: np.ndarray, wrist: Sequence[float] = ()) -> np.ndarray:
        """Move by one step of damped least squares on the place alone.

        Args:
            joints: (6,) measured, in the arm's units.
            target: (3,) of the tool [m].
            wrist: angles of wrist_flex and wrist_roll that are kept [deg]; empty moves them too.

        Returns:
            (6,) in the arm's units, inside the model's joint ranges; the gripper as it is.
        """
        radians = self.to_radians(joints)
        place, _ = self._forward(radians)
        missing = self._base.T @ np.asarray(target) - place
        jacobian = np.zeros((3, self._model.nv))
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_jac(self._model, self._data, jacobian, None, place, self._gripper)
        jacobian = jacobian[:, :BODY]
        if len(wrist):
            jacobian[:, WRIST] = 0
        step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + _DAMPING**2 * np.eye(3), missing)
        radians[:BODY] += _GAIN * np.clip(step, -_LARGEST, _LARGEST)
        if len(wrist):
            radians[WRIST] = np.radians(self._signs[WRIST] * (np.array(wrist) + self._offsets[WRIST]))
        radians[:BODY] = np.clip(radians[:BODY], *self._model.jnt_range[:BODY].T)
        return self.from_radians(radians)

    def _pose(self, radians: np.ndarray) -> np.ndarray:
        place, rotation = self._forward(radians)
        place, rotation = self._base @ place, self._base @ rotation
        level = math.hypot(rotation[0, 0], rotation[1, 0])
        if level > 1e-6:
            roll, yaw = math.atan2(rotation[2, 1], rotation[2, 2]), math.atan2(rotation[1, 0], rotation[0, 0])
        else:  # gimbal lock
            roll, yaw = math.atan2(-rotation[1, 2], rotation[1, 1]), 0.0
        return np.array([*place, roll, math.atan2(-rotation[2, 0], level), yaw])

    def _forward(self, radians: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._data.qpos[: len(radians)] = radians
        mujoco.mj_kinematics(self._model, self._data)
        rotation = self._data.xmat[self._gripper].reshape(3, 3)
        return self._data.xpos[self._gripper] + rotation @ self._tool, rotation
