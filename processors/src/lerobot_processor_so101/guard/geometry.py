# SPDX-License-Identifier: Apache-2.0
"""How far the arm reaches and how low, from its joint angles, in some 30 microseconds and without a simulator.

Frames of the joints are those of Menagerie's model; some fifty points of its meshes stand for the whole
(`benchmarks.guard_points` chooses them and says what they miss: some millimetres).
"""

import json
import math
from pathlib import Path

import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
GRIPPER = 5
_CLOSED, _SPAN = math.radians(-10), math.radians(110)  # the gripper's 0, and what its 100 percent are
_TOOL = np.array([0.0, 0.0, -0.0981274])  # between the fingertips, in the gripper's frame [m]


def _rotation(quaternion: list[float]) -> np.ndarray:
    """(3, 3) of a quaternion with the real part first."""
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


_geometry = json.loads((Path(__file__).parent / "geometry.json").read_text())
_PLACES = [np.array(place) for place, _ in _geometry["frames"]]
_TURNS = [_rotation(quaternion) for _, quaternion in _geometry["frames"]]
_POINTS = {int(link): np.array(points).T for link, points in _geometry["points"].items()}  # (3, N)


def reach(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the tool is, and how low the arm comes behind the elbow.

    Args:
        joints: (K, 6), degrees from the model's zero; the gripper 0..100.

    Returns:
        (K, 3) place of the tool in the base's frame, x forward, y left, z up [m], and (K,) the lowest height of forearm,
        hand and fingers [m]. The base stands on 0.
    """
    angles = np.radians(joints)
    angles[:, GRIPPER] = _CLOSED + joints[:, GRIPPER] * (_SPAN / 100)
    cosines, sines = np.cos(angles), np.sin(angles)
    place, turn = np.zeros((len(joints), 3)), np.broadcast_to(np.eye(3), (len(joints), 3, 3))
    lowest, tool = np.full(len(joints), np.inf), place
    for link in range(len(JOINTS)):
        place = place + turn @ _PLACES[link]
        before = turn @ _TURNS[link]
        turn = before.copy()  # joints turn about z
        cosine, sine = cosines[:, link, None], sines[:, link, None]
        turn[:, :, 0] = before[:, :, 0] * cosine + before[:, :, 1] * sine
        turn[:, :, 1] = before[:, :, 1] * cosine - before[:, :, 0] * sine
        if link in _POINTS:
            heights = turn[:, 2] @ _POINTS[link]
            lowest = np.minimum(lowest, heights.min(1) + place[:, 2])
        if link == GRIPPER - 1:
            tool = place + turn @ _TOOL
    return tool, lowest
