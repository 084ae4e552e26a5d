# SPDX-License-Identifier: Apache-2.0
"""Inverse kinematics of the arm: where the pinch point is, which way the gripper points, how the jaws are turned."""

from __future__ import annotations

import mujoco
import numpy as np

from . import arm
from .world import PINCH

_N = 5  # body joints; the gripper is not part of the chain
_AIM_WEIGHT = 0.04  # m per rad: how much a degree of tilt counts beside a millimetre of offset
_TURN_WEIGHT = 0.03


class Kinematics:
    """Solves for the five body joints on a scratch copy of the state, so the world is never disturbed."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        self._gripper = model.body("gripper").id
        self._jacp, self._jacr = np.zeros((3, model.nv)), np.zeros((3, model.nv))

    def pinch(self, joints: np.ndarray) -> np.ndarray:
        """Pinch point (3,) [m] at joint positions (>=5,) [rad]."""
        return self._forward(joints)[0]

    def solve(
        self,
        target: np.ndarray,
        guess: np.ndarray,
        turn: float | None = None,
        iterations: int = 40,
    ) -> tuple[np.ndarray, float]:
        """Joint positions that bring the pinch point to `target` with the gripper pointing down.

        Levenberg-Marquardt on position, tilt and, if given, the direction of the jaws. Out of reach of a vertical
        gripper the weights let it tilt rather than miss.

        Args:
            target: pinch point (3,) [m].
            guess: joints to start from (>=5,) [rad].
            turn: direction in which the jaws open, as an angle about z [rad]; None leaves it free.

        Returns:
            Joints (5,) [rad] and the remaining distance [m].
        """
        joints = np.array(guess[:_N], dtype=np.float64)
        damping, (error, jacobian) = 1e-4, self._residual(joints, target, turn)
        for _ in range(iterations):
            step = np.linalg.solve(jacobian.T @ jacobian + damping * np.eye(_N), jacobian.T @ error)
            trial = np.clip(joints - step, arm.LOWER[:_N], arm.UPPER[:_N])
            trial_error, trial_jacobian = self._residual(trial, target, turn)
            if trial_error @ trial_error < error @ error:
                moved = np.abs(trial - joints).max()
                joints, error, jacobian, damping = trial, trial_error, trial_jacobian, damping * 0.3
                if moved < 1e-4:
                    break
            else:
                damping *= 8.0
        return joints, float(np.linalg.norm(self.pinch(joints) - target))

    def _forward(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._data.qpos[:_N] = joints[:_N]
        mujoco.mj_kinematics(self._model, self._data)
        rotation = self._data.xmat[self._gripper].reshape(3, 3)
        return self._data.xpos[self._gripper] + rotation @ PINCH, rotation

    def _residual(
        self, joints: np.ndarray, target: np.ndarray, turn: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        pinch, rotation = self._forward(joints)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_jac(self._model, self._data, self._jacp, self._jacr, pinch, self._gripper)
        spin = self._jacr[:, :_N]
        up = rotation[:, 2]  # the gripper points along its -z
        error = [pinch - target, _AIM_WEIGHT * up[:2]]
        jacobian = [self._jacp[:, :_N], _AIM_WEIGHT * _cross_rows(up, spin)[:2]]
        if turn is not None:
            across = np.array([-np.sin(turn), np.cos(turn), 0.0])
            opening = rotation[:, 0]  # the jaws open along x
            error.append([_TURN_WEIGHT * (across @ opening)])
            jacobian.append(_TURN_WEIGHT * (across @ _cross_rows(opening, spin))[None])
        return np.concatenate(error), np.concatenate(jacobian)


def _cross_rows(axis: np.ndarray, spin: np.ndarray) -> np.ndarray:
    """d(axis)/d(joints): every column of `spin` (3, N) crossed with `axis` (3,)."""
    return np.cross(spin.T, axis).T
