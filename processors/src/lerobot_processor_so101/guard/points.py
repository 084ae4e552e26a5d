# SPDX-License-Identifier: Apache-2.0
"""Compute where the tool is and how low the arm reaches, from its joint angles.

Some fifty points of the meshes stand for the arm behind the elbow. `benchmarks.safety.guard_points` chooses
them and measures what they miss: some millimetres.
"""

import json
from pathlib import Path

import numpy as np

from ..arm import GRIPPER, JOINTS, TOOL_POINT, forward_kinematics, to_radians

_POINTS = {  # joint: (N, 3) points of the link that it moves, in the joint's frame [m]
    int(joint): np.array(points)
    for joint, points in json.loads((Path(__file__).parent / "points.json").read_text()).items()
}
_MOST = max(map(len, _POINTS.values()))
_LINKS = list(_POINTS)
_STACKED = np.stack([np.resize(points, (_MOST, 3)) for points in _POINTS.values()])  # (L, N, 3), some twice


def reach(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the tool's position and the arm's lowest height.

    Args:
        joints: (K, 6) from the model's zero [deg]; the gripper 0..100.

    Returns:
        (K, 3) position of the tool in the base's frame, x forward, y left, z up [m], and (K,) the lowest
        height of forearm, hand and fingers [m]. The base stands on 0.
    """
    positions, rotations = forward_kinematics(to_radians(joints))  # (6, K, 3), (6, K, 3, 3)
    tool = positions[GRIPPER - 1] + rotations[GRIPPER - 1] @ TOOL_POINT
    vertical = rotations[_LINKS, :, 2].swapaxes(1, 2)  # third rows, (L, 3, K)
    heights = (_STACKED @ vertical).min(1) + positions[_LINKS, :, 2]  # (L, N, K) -> (L, K)
    return tool, heights.min(0)


def _displacements() -> np.ndarray:
    """Bound how far any point of the arm moves per unit of each joint, (6,) [m/deg; m/percent]."""
    origin = np.zeros(len(JOINTS))
    positions, _ = forward_kinematics(to_radians(origin))  # distances between joints are those of any pose
    radii, beyond = np.zeros(len(JOINTS)), 0.0
    for joint in reversed(range(len(JOINTS))):
        own = np.linalg.norm(_POINTS[joint], axis=1).max() if joint in _POINTS else 0.0
        if joint == GRIPPER - 1:
            own = max(own, float(np.linalg.norm(TOOL_POINT)))
        radii[joint] = max(own, beyond)
        beyond = radii[joint] + float(np.linalg.norm(positions[joint] - positions[joint - 1]))
    return radii * (to_radians(origin + 1) - to_radians(origin))


DISPLACEMENTS = _displacements()
