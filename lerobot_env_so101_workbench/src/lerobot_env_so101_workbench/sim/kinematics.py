# SPDX-License-Identifier: Apache-2.0
"""Inverse kinematics of the expert: position of the pinch point, gripper down, direction of the jaws."""

import numpy as np

from lerobot_processor_so101.arm import GRIPPER, LOWER, PINCH_POINT, UPPER, gripper_point

_AIM_WEIGHT = 0.04  # m per rad: weight of tilt relative to offset
_TURN_WEIGHT = 0.03


def pinch_position(radians: np.ndarray) -> np.ndarray:
    """Compute the pinch point (3,) [m] at joint positions (>=5,) [rad]."""
    return gripper_point(radians, PINCH_POINT).position


def jaw_angle(radians: np.ndarray) -> float:
    """Compute the angle about z in which the jaws open [rad] at joint positions (>=5,) [rad]."""
    opening = gripper_point(radians, PINCH_POINT).rotation[:, 0]
    return float(np.arctan2(opening[1], opening[0]))


def solve(
    target: np.ndarray, guess: np.ndarray, turn: float | None = None, iterations: int = 40
) -> np.ndarray:
    """Find joint positions that bring the pinch point to `target` with the gripper pointing down.

    Levenberg-Marquardt on position, tilt and, if given, the direction of the jaws. Where a vertical gripper
    cannot reach, the weights prefer tilt to offset.

    Args:
        target: pinch point (3,) [m].
        guess: initial joints (>=5,) [rad].
        turn: direction in which the jaws open, as an angle about z [rad]; None leaves it free.
        iterations: maximum number of iterations.

    Returns:
        Joints (5,) [rad].
    """
    joints = np.array(guess[:GRIPPER], dtype=np.float64)
    damping, (error, jacobian) = 1e-4, _residual(joints, target, turn)
    for _ in range(iterations):
        step = np.linalg.solve(jacobian.T @ jacobian + damping * np.eye(GRIPPER), jacobian.T @ error)
        trial = np.clip(joints - step, LOWER[:GRIPPER], UPPER[:GRIPPER])
        trial_error, trial_jacobian = _residual(trial, target, turn)
        if trial_error @ trial_error < error @ error:
            moved = np.abs(trial - joints).max()
            joints, error, jacobian, damping = trial, trial_error, trial_jacobian, damping * 0.3
            if moved < 1e-4:
                break
        else:
            damping *= 8.0
    return joints


def _residual(joints: np.ndarray, target: np.ndarray, turn: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Compute the weighted errors (E,) and their Jacobian (E, 5)."""
    position, rotation, linear, angular = gripper_point(joints, PINCH_POINT)
    up = rotation[:, 2]  # the gripper points along its -z
    error = [position - target, _AIM_WEIGHT * up[:2]]
    jacobian = [linear, _AIM_WEIGHT * _turned(up, angular)[:2]]
    if turn is not None:
        across = np.array([-np.sin(turn), np.cos(turn), 0.0])
        opening = rotation[:, 0]  # the jaws open along x
        error.append([_TURN_WEIGHT * (across @ opening)])
        jacobian.append(_TURN_WEIGHT * (across @ _turned(opening, angular))[None])
    return np.concatenate(error), np.concatenate(jacobian)


def _turned(axis: np.ndarray, angular: np.ndarray) -> np.ndarray:
    """Derivative (3, 5) of an axis (3,) of the gripper by the joints: angular velocity x axis."""
    x, y, z = axis
    return np.stack(
        [angular[1] * z - angular[2] * y, angular[2] * x - angular[0] * z, angular[0] * y - angular[1] * x]
    )
