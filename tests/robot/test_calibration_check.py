# SPDX-License-Identifier: Apache-2.0
"""Units and calibration that a checkpoint's statistics show, and the policies that are refused for them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from lerobot.motors import MotorCalibration, MotorNormMode
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
from safetensors.numpy import save_file

from lerobot_processor_so101.arm import JOINTS
from lerobot_robot_so101.calibration_check import (
    DEGREES,
    PERCENT,
    check_calibration,
    checkpoint_extremes,
    infer_units,
    mismatched_joints,
)


def calibration(seed: int) -> dict[str, MotorCalibration]:
    """Calibration of an arm that was moved through its ranges by hand."""
    rng = np.random.default_rng(seed)
    found = {}
    for number, joint in enumerate(JOINTS, 1):
        low, high = rng.integers(700, 900), rng.integers(3200, 3400)
        if joint == "wrist_roll":
            low, high = 0, 4095
        found[joint] = MotorCalibration(number, 0, 0, int(low), int(high))
    return found


def recorded(with_calibration, use_degrees: bool, seed: int = 0) -> np.ndarray:
    """Extremes (2, 6) as LeRobot's driver computes them from encoder steps and a checkpoint stores them."""
    bus = SO101Follower(SO101FollowerConfig(port="none", use_degrees=use_degrees)).bus
    bus.calibration = with_calibration
    steps = np.sort(np.random.default_rng(seed).integers(1000, 3100, (2, 6)), axis=0)
    found = [bus._normalize(dict(zip(range(1, 7), map(int, row), strict=True))) for row in steps]
    assert bus.motors["gripper"].norm_mode is MotorNormMode.RANGE_0_100
    return np.array([list(row.values()) for row in found], np.float32).astype(np.float64)


@pytest.fixture
def checkpoint(tmp_path):
    """`checkpoint(extremes)`: a folder with the two files that are read."""

    def make(extremes):
        steps = [
            {"registry_name": "rename_observations_processor", "config": {}},
            {"registry_name": "normalizer_processor", "config": {}, "state_file": "numbers.safetensors"},
        ]
        (tmp_path / "policy_preprocessor.json").write_text(json.dumps({"name": "policy", "steps": steps}))
        low, high = extremes.astype(np.float32)
        save_file(
            {"observation.state.min": low, "observation.state.max": high, "action.min": low},
            tmp_path / "numbers.safetensors",
        )
        return tmp_path

    return make


@pytest.mark.parametrize("seed", range(20))
def test_units_and_calibration_are_inferred_from_the_extremes(seed):
    own, other = calibration(seed), calibration(seed + 100)
    for use_degrees, units in ((True, DEGREES), (False, PERCENT)):
        extremes = recorded(own, use_degrees, seed)
        assert infer_units(extremes) == units
        assert mismatched_joints(extremes, own) == []
        assert mismatched_joints(extremes, other)


def test_degrees_do_not_show_a_middle_that_is_off_by_whole_steps():
    """A limit that docs/real_arm.md states: 100 steps are 8.8 deg."""
    own = calibration(0)
    elbow = own["elbow_flex"]
    other = {**own, "elbow_flex": replace(elbow, range_min=elbow.range_min + 200)}
    assert mismatched_joints(recorded(own, use_degrees=True), other) == []
    assert mismatched_joints(recorded(own, use_degrees=False), other) == ["elbow_flex"]
    odd = {**own, "elbow_flex": replace(elbow, range_min=elbow.range_min + 201)}
    assert mismatched_joints(recorded(own, use_degrees=True), odd) == ["elbow_flex"]


def test_simulated_joints_are_in_degrees_and_fit_every_calibration():
    extremes = (
        np.array([[-30, -100, -60, 60, -125, 18], [17, 46, 89, 94, -40, 51]]) * 4096 // 360 * 360 / 4096
    )
    assert infer_units(extremes) == DEGREES
    assert mismatched_joints(extremes, calibration(0)) == []


@pytest.mark.parametrize(
    "extremes", [np.zeros((2, 6)), np.random.default_rng(0).normal(0, 40, (2, 6)), np.ones((2, 6))]
)
def test_extremes_of_unknown_units_are_accepted(extremes, checkpoint):
    assert infer_units(extremes) is None
    check_calibration(checkpoint(extremes), calibration(0), use_degrees=True, any_calibration=False)


def test_other_units_are_refused_with_the_flag(checkpoint):
    own = calibration(0)
    folder = checkpoint(recorded(own, use_degrees=False))
    with pytest.raises(ValueError, match=r"in -100..100, and the arm is in degrees.*use_degrees=false"):
        check_calibration(folder, own, use_degrees=True, any_calibration=True)
    check_calibration(folder, own, use_degrees=False, any_calibration=False)


def test_another_calibration_is_refused_unless_any_calibration(checkpoint):
    folder = checkpoint(recorded(calibration(1), use_degrees=True))
    with pytest.raises(ValueError, match=r"another calibration \(.*gripper\).*any_calibration=true"):
        check_calibration(folder, calibration(0), use_degrees=True, any_calibration=False)
    check_calibration(folder, calibration(0), use_degrees=True, any_calibration=True)
    check_calibration(folder, calibration(1), use_degrees=True, any_calibration=False)


def test_a_checkpoint_without_extremes_is_not_checked(tmp_path):
    assert checkpoint_extremes(tmp_path) is None
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps({"steps": [{"registry_name": "x"}]}))
    assert checkpoint_extremes(tmp_path) is None
