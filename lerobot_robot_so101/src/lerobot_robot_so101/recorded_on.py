# SPDX-License-Identifier: Apache-2.0
"""On what arm a policy's demonstrations were recorded, as far as their numbers tell.

LeRobot writes neither units nor calibration into a dataset. But servos report whole steps, and LeRobot makes degrees of them
(360/4095 each, from the middle of the calibrated range) or percent of that range. So the smallest and largest joint positions,
which every checkpoint keeps with its normalisation, lie on a grid that says which of the two it was. 32 bits per number leave an
error of a thousandth of a step.

Of the calibration the grid says less. Percent tell the size of a joint's range, unless the joint was at both ends. Degrees tell
whether the middle of the range is a whole step, one bit per joint, and of wrist_roll nothing; in them it is the gripper, always in
percent, that gives another arm away.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from lerobot.motors import MotorCalibration
from lerobot.utils.constants import OBS_STATE, POLICY_PREPROCESSOR_DEFAULT_NAME
from safetensors import safe_open

from lerobot_processor_so101.guard import JOINTS

DEGREES, PERCENT = "degrees", "-100..100"
_STEPS = 4095  # LeRobot divides a turn by this
_SIMULATED_STEPS = 4096  # as the workbench does, from the model's zero
_TOLERANCE = 0.01  # steps
_ROLL, _GRIPPER = 4, 5  # LeRobot always takes a full turn for the range of wrist_roll


def checkpoint_extremes(checkpoint: Path) -> np.ndarray | None:
    """Smallest and largest joint positions (2, 6) that a policy was trained on; None if it does not tell."""
    pipeline = checkpoint / f"{POLICY_PREPROCESSOR_DEFAULT_NAME}.json"
    if not pipeline.is_file():
        return None
    for step in json.loads(pipeline.read_text())["steps"]:
        if step.get("registry_name") != "normalizer_processor" or "state_file" not in step:
            continue
        with safe_open(checkpoint / step["state_file"], "np") as numbers:
            names = [f"{OBS_STATE}.{end}" for end in ("min", "max")]
            if set(names) <= set(numbers.keys()):
                found = np.array([numbers.get_tensor(name) for name in names], np.float64)
                return found if found.shape == (2, len(JOINTS)) else None
    return None


def units_of(extremes: np.ndarray) -> str | None:
    """DEGREES, PERCENT, or None if it cannot be told, from the extremes (2, 6) of a recording."""
    body = extremes[:, :_GRIPPER]
    if len(np.unique(body)) < 4:  # made up, or of an arm that hardly moved
        return None
    halves = _whole(body * 2 * _STEPS / 360)  # the middle of a range may lie between two steps
    if halves.all() or _whole(body * _SIMULATED_STEPS / 360).all():
        return DEGREES
    if np.abs(body).max() <= 100 and _whole((body[:, _ROLL] + 100) * _STEPS / 200).all():
        return PERCENT
    return None


def other_joints(extremes: np.ndarray, calibration: Mapping[str, MotorCalibration]) -> list[str]:
    """Joints whose extremes (2, 6) were not recorded with this calibration. None for what the simulator recorded.

    Those that are named are others; those that are not may be, see above.
    """
    units = units_of(extremes)
    if units is None or (units == DEGREES and _whole(extremes[:, :_GRIPPER] * _SIMULATED_STEPS / 360).all()):
        return []
    others = []
    for number, joint in enumerate(JOINTS):
        low, high = calibration[joint].range_min, calibration[joint].range_max
        if number == _GRIPPER:
            steps = extremes[:, number] / 100 * (high - low)
        elif units == DEGREES:
            steps = extremes[:, number] * _STEPS / 360 + (low + high) / 2
        else:
            steps = (extremes[:, number] + 100) / 200 * (high - low)
        if not _whole(steps).all():
            others.append(joint)
    return others


def check_recorded_on(
    checkpoint: Path, calibration: Mapping[str, MotorCalibration], use_degrees: bool, any_calibration: bool
) -> None:
    """Refuse a policy that means something else by its numbers than the arm does.

    Raises:
        ValueError: other units, or, unless that is allowed, another calibration.
    """
    extremes = checkpoint_extremes(checkpoint)
    if extremes is None:
        return
    units, own = units_of(extremes), DEGREES if use_degrees else PERCENT
    if units not in (None, own):
        flag = f"robot.use_degrees={str(not use_degrees).lower()}"
        raise ValueError(
            f"--policy.path: {checkpoint} was trained on joints in {units}, and the arm is in {own}. Pass `--{flag}` "
            f"(to lerobot-eval `--env.{flag}`)."
        )
    others = [] if any_calibration else other_joints(extremes, calibration)
    if others:
        flag = "robot.any_calibration=true"
        raise ValueError(
            f"--policy.path: {checkpoint} was trained on an arm with another calibration ({', '.join(others)}): the same "
            f"numbers are other angles here. Give the calibration file of the recordings as `--robot.id`, or, if the middles "
            f"of all joints are where they were, pass `--{flag}` (to lerobot-eval `--env.{flag}`)."
        )


def _whole(steps: np.ndarray) -> np.ndarray:
    """Which numbers are whole."""
    return np.abs(steps - np.round(steps)) < _TOLERANCE
