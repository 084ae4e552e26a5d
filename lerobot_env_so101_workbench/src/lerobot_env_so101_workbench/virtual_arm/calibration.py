# SPDX-License-Identifier: Apache-2.0
"""Mounting of the emulated servos, and the calibration that `lerobot-calibrate` would find for them.

Horns are never mounted exactly in the middle: each servo's encoder has an offset drawn from a seed.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from lerobot.motors import MotorCalibration
from lerobot.utils.constants import HF_LEROBOT_CALIBRATION

from lerobot_processor_so101 import arm

from ..sim.servos import ENCODER_STEP
from .sts_registers import STEPS_PER_TURN
from .sts_servo import Servo

FOLLOWER, LEADER = "robots/so_follower", "teleoperators/so_leader"  # folders of LeRobot's calibration files
_MIDDLE = (STEPS_PER_TURN - 1) // 2  # LeRobot's position of the middle of a joint's range
_MAX_OFFSET = 500  # steps


def encoder_zeros(seed: int) -> list[float]:
    """Draw the encoder steps at the joints' angle 0."""
    offsets = np.random.default_rng(seed).integers(-_MAX_OFFSET, _MAX_OFFSET + 1, len(arm.JOINTS))
    return (2048.0 + offsets).tolist()


def calibration_of(servos: Iterable[Servo]) -> dict[str, MotorCalibration]:
    """Return the calibration that LeRobot finds for servos in the order of `arm.JOINTS`."""
    found = {}
    ranges = zip(servos, arm.LOWER / ENCODER_STEP, arm.UPPER / ENCODER_STEP, strict=True)
    for number, (servo, low, high) in enumerate(ranges, 1):
        offset = round(servo.zero + (low + high) / 2) - _MIDDLE
        ends = [round(servo.zero + end) - offset for end in (low, high)]
        if servo.name == "wrist_roll":  # LeRobot's range of this joint is a full turn
            ends = [0, STEPS_PER_TURN - 1]
        found[servo.name] = MotorCalibration(number, 0, offset, *ends)
    return found


def set_up(servos: Iterable[Servo]) -> None:
    """Set the servos' ids, as `lerobot-setup-motors` does."""
    for number, servo in enumerate(servos, 1):
        servo.set("ID", number)
        servo.save()


def calibrate(servos: Sequence[Servo]) -> None:
    """Write the calibration to the servos, as `lerobot-calibrate` does."""
    for servo, found in zip(servos, calibration_of(servos).values(), strict=True):
        servo.set("Homing_Offset", found.homing_offset)
        servo.set("Min_Position_Limit", found.range_min)
        servo.set("Max_Position_Limit", found.range_max)
        servo.save()


def calibration_file(folder: str, id: str) -> Path:
    """Return the path of LeRobot's calibration file for this `--robot.id` or `--teleop.id`."""
    return HF_LEROBOT_CALIBRATION / folder / f"{id}.json"


def write_calibration_file(servos: Iterable[Servo], folder: str, id: str) -> None:
    """Write LeRobot's calibration file.

    Raises:
        FileExistsError: if there is a different one, perhaps of a real arm.
    """
    path = calibration_file(folder, id)
    text = json.dumps({name: asdict(found) for name, found in calibration_of(servos).items()}, indent=4)
    if path.exists() and json.loads(path.read_text()) != json.loads(text):
        left = "holds another calibration and was left as it is; choose another id, or remove the file"
        raise FileExistsError(f"--id: {path} {left}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
