# SPDX-License-Identifier: Apache-2.0
"""Servos of the simulated arm: their parameters, backlash and encoders.

Parameters are those of the Feetech STS3215 at 12 V (data sheet: 30 kg.cm stall torque, 0.222 s per 60 deg
without load, 4096 steps per turn, backlash up to 0.5 deg). LeRobot halves the gripper's torque limit.
"""

import numpy as np

from lerobot_processor_so101.arm import JOINTS, LOWER, UPPER, from_radians

STALL_TORQUE = 2.94  # N.m
GRIPPER_TORQUE = STALL_TORQUE / 2  # LeRobot writes Max_Torque_Limit = 500 (of 1000) to the gripper's servo
NO_LOAD_SPEED = np.pi / 3 / 0.222  # rad/s
ENCODER_STEP = 2 * np.pi / 4096  # rad
BACKLASH = np.radians(0.5)  # rad, total play of the gear train


def check_action(action: np.ndarray) -> np.ndarray:
    """Return `action` as (6,) float64.

    Raises:
        ValueError: if the size is not 6, or a value is NaN or infinite.
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
            f"action: found a non-finite value for {', '.join(bad)}, expected finite degrees (gripper "
            "0-100). Check the policy's normalisation statistics and its training loss for NaN."
        )
    return action


class Servos:
    """Six STS3215: goals quantised to encoder steps, and backlash.

    Speed and torque limits are part of the physics (joint damping and actuator force range, see `scene`): at
    the no-load speed, back-EMF damping equals the stall torque.
    """

    def __init__(self) -> None:
        self._goal: np.ndarray = np.zeros(len(JOINTS))

    def reset(self, radians: np.ndarray) -> None:
        """Centre the backlash on the present position (6,) [rad]."""
        self._goal = np.array(radians, dtype=np.float64)

    def drive(self, goal: np.ndarray) -> np.ndarray:
        """Map a commanded goal (6,) [rad] to the position (6,) [rad] that the output shafts are driven to."""
        steps = np.clip(np.round(goal / ENCODER_STEP) * ENCODER_STEP, LOWER, UPPER)
        # The output follows only after the command has crossed the play: a hysteresis of BACKLASH.
        self._goal = np.clip(self._goal, steps - BACKLASH / 2, steps + BACKLASH / 2)
        return self._goal


def read_encoders(radians: np.ndarray) -> np.ndarray:
    """Quantise positions (6,) [rad] to encoder steps and convert them to LeRobot's units."""
    return from_radians(np.round(radians / ENCODER_STEP) * ENCODER_STEP)
