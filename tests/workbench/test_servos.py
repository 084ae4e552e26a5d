# SPDX-License-Identifier: Apache-2.0
"""The simulated arm has the joints, units and servo limits of a real SO-101."""

import numpy as np
import pytest

from lerobot_env_so101_workbench.sim import servos
from lerobot_env_so101_workbench.sim.initial_states import evaluation_initial_state
from lerobot_processor_so101 import arm


def test_units_survive_conversion_to_radians_and_back():
    positions = np.random.default_rng(0).uniform(-100, 100, (50, 6))
    np.testing.assert_allclose(arm.from_radians(arm.to_radians(positions)), positions, atol=1e-9)


def test_degrees_for_the_body_and_percent_for_the_gripper():
    radians = arm.to_radians(np.array([[90.0, 0, 0, 0, -90.0, 0.0], [0, 0, 0, 0, 0, 100.0]]))
    assert radians[0, 0] == pytest.approx(np.pi / 2)
    assert radians[0, 4] == pytest.approx(-np.pi / 2)
    assert radians[:, 5] == pytest.approx([arm.LOWER[5], arm.UPPER[5]])


def test_joints_are_those_of_lerobots_follower(tmp_path):
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    follower = SO101Follower(SO101FollowerConfig(port="unused", calibration_dir=tmp_path))
    assert tuple(follower.action_features) == arm.ACTION_NAMES


def test_limits_are_those_of_the_model(world_of):
    ranges = np.array([world_of().model.joint(name).range for name in arm.JOINTS])
    np.testing.assert_allclose(ranges, np.column_stack([arm.LOWER, arm.UPPER]), atol=1e-5)
    assert (arm.to_radians(arm.HOME) > arm.LOWER).all()
    assert (arm.to_radians(arm.HOME) < arm.UPPER).all()


def test_an_action_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"found shape \(4,\), expected \(6,\)"):
        servos.check_action(np.zeros(4))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_action_names_the_joint(value):
    with pytest.raises(ValueError, match="non-finite value for wrist_flex,"):
        servos.check_action(np.array([0, 0, 0, value, 0, 0]))


def test_backlash_is_a_hysteresis_of_half_a_degree():
    driven, up = servos.Servos(), np.radians(10.0)
    driven.reset(np.zeros(6))
    reached = driven.drive(np.full(6, up)).copy()
    assert np.abs(reached[:5] - up + servos.BACKLASH / 2).max() < servos.ENCODER_STEP
    still = driven.drive(np.full(6, up) - 0.8 * servos.BACKLASH).copy()
    np.testing.assert_array_equal(still, reached)
    assert (driven.drive(np.full(6, up) - 2 * servos.BACKLASH) < reached).all()


def test_goals_are_quantised_and_within_the_joint_limits():
    driven = servos.Servos()
    driven.reset(np.full(6, -1.0))
    goal = (driven.drive(np.full(6, 0.1234))[:5] + servos.BACKLASH / 2) / servos.ENCODER_STEP
    np.testing.assert_allclose(goal, np.round(goal), atol=1e-6)
    np.testing.assert_allclose(driven.drive(np.full(6, 100.0)), arm.UPPER, atol=servos.BACKLASH)


def test_positions_are_quantised_to_encoder_steps():
    radians = np.random.default_rng(0).uniform(arm.LOWER, arm.UPPER, (20, 6))
    steps = arm.to_radians(servos.read_encoders(radians)) / servos.ENCODER_STEP
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
    assert np.abs(steps * servos.ENCODER_STEP - radians).max() <= servos.ENCODER_STEP / 2 + 1e-9


@pytest.mark.parametrize("joint", range(6))
def test_no_joint_is_faster_than_the_no_load_speed(world_of, joint):
    world = world_of()
    world.reset(evaluation_initial_state("lift_cube", "clean", 0))
    pose = np.array([0.0, -80.0, 30.0, 60.0, 0.0, 20.0])
    for _ in range(40):
        world.step(pose)
    pose[joint] += 60.0
    speeds = []
    for _ in range(8):
        before = world.data.qpos[joint]
        world.step(pose)
        speeds.append((world.data.qpos[joint] - before) * arm.FPS)
    # Gravity adds up to a tenth on the way down; the gripper has half the torque to reach the speed with.
    assert 0.4 * servos.NO_LOAD_SPEED < max(speeds) < 1.15 * servos.NO_LOAD_SPEED


def test_the_held_arm_sags_by_less_than_a_degree(world_of):
    world = world_of()
    world.reset(evaluation_initial_state("lift_cube", "clean", 0))
    extended = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 20.0])
    for _ in range(90):
        world.step(extended)
    sag = np.abs(world.joints() - extended)[:5].max()
    assert 0.0 < sag < 1.0
    assert np.abs(world.data.qvel[:6]).max() < 0.01
