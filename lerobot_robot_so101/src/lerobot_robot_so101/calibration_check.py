# SPDX-License-Identifier: Apache-2.0
"""Check, from its statistics, that a policy was trained in the arm's units and with its calibration.

LeRobot stores neither units nor calibration in a dataset. But servos report integer encoder steps, and
LeRobot converts them to degrees (360/4095 each, from the middle of the calibrated range) or to percent of
that range. So the smallest and largest joint positions, which every checkpoint keeps with its normalisation,
lie on a grid that shows which of the two it was. In float32 a position is at most a thousandth of a step off
the grid.

The grid shows less of the calibration. Percent show the size of a joint's range, unless the joint was at both
ends. Degrees show whether the middle of the range is an integer step, one bit per joint, and nothing of
wrist_roll; with them it is the gripper, always in percent, that identifies another arm.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from lerobot.motors import MotorCalibration
from lerobot.utils.constants import OBS_STATE, POLICY_PREPROCESSOR_DEFAULT_NAME
from safetensors import safe_open

from lerobot_processor_so101.arm import JOINTS

DEGREES, PERCENT = "degrees", "-100..100"
_STEPS = 4095  # LeRobot divides a turn by this
_SIMULATED_STEPS = 4096  # the workbench divides a turn by this, and counts from the model's zero
_TOLERANCE = 0.01  # steps
_ROLL, _GRIPPER = 4, 5  # indices; LeRobot always takes a full turn as the range of wrist_roll


def checkpoint_extremes(checkpoint: Path) -> np.ndarray | None:
    """Read the smallest and largest joint positions of the training data, (2, 6); None if not stored."""
    pipeline = checkpoint / f"{POLICY_PREPROCESSOR_DEFAULT_NAME}.json"
    if not pipeline.is_file():
        return None
    for step in json.loads(pipeline.read_text())["steps"]:
        if step.get("registry_name") != "normalizer_processor" or "state_file" not in step:
            continue
        with safe_open(checkpoint / step["state_file"], "np") as statistics:
            names = [f"{OBS_STATE}.{end}" for end in ("min", "max")]
            if set(names) <= set(statistics.keys()):
                found = np.array([statistics.get_tensor(name) for name in names], np.float64)
                return found if found.shape == (2, len(JOINTS)) else None
    return None


def infer_units(extremes: np.ndarray) -> str | None:
    """Infer the units of a recording from its extremes (2, 6): DEGREES, PERCENT, or None if unknown."""
    body = extremes[:, :_GRIPPER]
    if len(np.unique(body)) < 4:  # synthetic, or from an arm that hardly moved
        return None
    half_steps = body * 2 * _STEPS / 360  # the middle of a range may lie between two steps
    if _on_grid(half_steps).all() or _on_grid(body * _SIMULATED_STEPS / 360).all():
        return DEGREES
    if np.abs(body).max() <= 100 and _on_grid((body[:, _ROLL] + 100) * _STEPS / 200).all():
        return PERCENT
    return None


def mismatched_joints(extremes: np.ndarray, calibration: Mapping[str, MotorCalibration]) -> list[str]:
    """Name the joints whose extremes (2, 6) were recorded with another calibration.

    A joint that is not named may still have another one, see above. Recordings of the simulator name none.
    """
    units = infer_units(extremes)
    simulated = _on_grid(extremes[:, :_GRIPPER] * _SIMULATED_STEPS / 360).all()
    if units is None or (units == DEGREES and simulated):
        return []
    mismatched = []
    for number, joint in enumerate(JOINTS):
        low, high = calibration[joint].range_min, calibration[joint].range_max
        if number == _GRIPPER:
            steps = extremes[:, number] / 100 * (high - low)
        elif units == DEGREES:
            steps = extremes[:, number] * _STEPS / 360 + (low + high) / 2
        else:
            steps = (extremes[:, number] + 100) / 200 * (high - low)
        if not _on_grid(steps).all():
            mismatched.append(joint)
    return mismatched


def check_calibration(
    checkpoint: Path, calibration: Mapping[str, MotorCalibration], use_degrees: bool, any_calibration: bool
) -> None:
    """Refuse a policy whose joint positions mean other angles on this arm.

    Raises:
        ValueError: if it was trained in other units or, without `any_calibration`, with another calibration.
    """
    extremes = checkpoint_extremes(checkpoint)
    if extremes is None:
        return
    units, arm_units = infer_units(extremes), DEGREES if use_degrees else PERCENT
    if units not in (None, arm_units):
        flag = f"robot.use_degrees={str(not use_degrees).lower()}"
        raise ValueError(
            f"--policy.path: {checkpoint} was trained on joints in {units}, and the arm is in {arm_units}. "
            f"Pass `--{flag}` (to lerobot-eval `--env.{flag}`)."
        )
    mismatched = [] if any_calibration else mismatched_joints(extremes, calibration)
    if mismatched:
        flag = "robot.any_calibration=true"
        raise ValueError(
            f"--policy.path: {checkpoint} was trained on an arm with another calibration "
            f"({', '.join(mismatched)}): the same positions are other angles here. Give the calibration file "
            "of the recordings as `--robot.id`, or, if the middles of all joints have not changed, pass "
            f"`--{flag}` (to lerobot-eval `--env.{flag}`)."
        )


def _on_grid(steps: np.ndarray) -> np.ndarray:
    """Mark the positions that are integer encoder steps."""
    return np.abs(steps - np.round(steps)) < _TOLERANCE
