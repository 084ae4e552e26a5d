# SPDX-License-Identifier: Apache-2.0
"""The SO-101 as LeRobot's `so101_follower` presents it: joint names, units, limits and servo figures.

Everything outside this package speaks *LeRobot units*: degrees for the five body joints, 0 to 100 for the
gripper (0 closed, 100 open). MuJoCo speaks radians. Only `to_radians` and `from_radians` convert.

Servo figures are those of the Feetech STS3215 at 12 V (data sheet: 30 kg.cm stall torque, 0.222 s per 60 deg
without load, 4096 steps per turn, backlash up to 0.5 deg). LeRobot halves the gripper's torque limit.
"""

import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
ACTION_NAMES = tuple(f"{joint}.pos" for joint in JOINTS)
GRIPPER = 5
FPS = 30

# Joint ranges of Menagerie's model [rad]; the gripper's range is what 0..100 spans.
LOWER = np.array([-1.91986, -1.74533, -1.69, -1.65806, -2.74385, -0.17453])
UPPER = np.array([1.91986, 1.74533, 1.69, 1.65806, 2.74385, 1.74533])

# Ready pose: the gripper hangs above the near edge of the work area; the wrist camera sits on top of it and
# sees the area between and beyond the fingers.
HOME = np.array([0.0, -80.0, 30.0, 85.0, -90.0, 50.0])

PAN_AXIS_X = 0.0388  # m: where the pan axis stands, in the base's frame

STALL_TORQUE = 2.94  # N.m
GRIPPER_TORQUE = STALL_TORQUE / 2  # LeRobot writes Max_Torque_Limit = 500 (of 1000) to the gripper's servo
NO_LOAD_SPEED = np.pi / 3 / 0.222  # rad/s
ENCODER_STEP = 2 * np.pi / 4096  # rad
BACKLASH = np.radians(0.5)  # rad, total play of the gear train


def to_radians(positions: np.ndarray) -> np.ndarray:
    """Convert joint positions (..., 6) from LeRobot units to radians."""
    positions = np.asarray(positions, dtype=np.float64)
    radians = np.radians(positions)
    span = UPPER[GRIPPER] - LOWER[GRIPPER]
    radians[..., GRIPPER] = LOWER[GRIPPER] + positions[..., GRIPPER] / 100.0 * span
    return radians


def from_radians(radians: np.ndarray) -> np.ndarray:
    """Convert joint positions (..., 6) from radians to LeRobot units."""
    radians = np.asarray(radians, dtype=np.float64)
    positions = np.degrees(radians)
    span = UPPER[GRIPPER] - LOWER[GRIPPER]
    positions[..., GRIPPER] = (radians[..., GRIPPER] - LOWER[GRIPPER]) / span * 100.0
    return positions


def check_action(action: np.ndarray) -> np.ndarray:
    """Return `action` as (6,) float64, or say in one sentence what is wrong with it.

    Raises:
        ValueError: the size is not 6, or a value is NaN or infinite.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (len(JOINTS),):
        raise ValueError(
            f"action: found shape {action.shape}, expected ({len(JOINTS)},): one position for each of "
            f"{', '.join(JOINTS)} in degrees (gripper 0-100). Train the policy on data of a 6-joint SO-101."
        )
    if not np.isfinite(action).all():
        bad = [joint for joint, value in zip(JOINTS, action, strict=True) if not np.isfinite(value)]
        raise ValueError(
            f"action: found a non-finite value for {', '.join(bad)}, expected finite degrees (gripper 0-100). "
            "Check the policy's normalisation statistics and its training loss for NaN."
        )
    return action


class Servos:
    """What six STS3215 make of the commands they get: a goal in whole encoder steps, behind gear play.

    Speed and torque limits live in the physics (joint damping and actuator force range, see `scene`): the
    no-load speed is where back-EMF damping eats the whole stall torque.
    """

    def __init__(self) -> None:
        self._goal: np.ndarray = np.zeros(len(JOINTS))

    def reset(self, radians: np.ndarray) -> None:
        """Start with the play centred on the present position (6,) [rad]."""
        self._goal = np.array(radians, dtype=np.float64)

    def drive(self, goal: np.ndarray) -> np.ndarray:
        """Map a commanded goal (6,) [rad] to the position (6,) [rad] that the output shafts are driven to."""
        steps = np.clip(np.round(goal / ENCODER_STEP) * ENCODER_STEP, LOWER, UPPER)
        # The output follows only once the command has crossed the play: a hysteresis of BACKLASH.
        self._goal = np.clip(self._goal, steps - BACKLASH / 2, steps + BACKLASH / 2)
        return self._goal


def read_encoders(radians: np.ndarray) -> np.ndarray:
    """Present positions (6,) in LeRobot units as the servos report them: whole encoder steps."""
    return from_radians(np.round(radians / ENCODER_STEP) * ENCODER_STEP)
