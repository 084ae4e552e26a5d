# SPDX-License-Identifier: Apache-2.0
"""The physics and the expert: every task can be done, and the same actions give the same world."""

import dataclasses

import numpy as np
import pytest

from lerobot_env_so101_workbench.sim.expert import Expert
from lerobot_env_so101_workbench.sim.initial_states import evaluation_initial_state, training_initial_state
from lerobot_processor_so101.arm import FPS, HOME, to_radians


def begin(world, number: int = 0):
    world.reset(evaluation_initial_state(world.task.name, world.level, number))
    return Expert(world)


def state(world) -> np.ndarray:
    return np.concatenate([world.data.qpos, world.data.qvel, world.data.ctrl])


@pytest.mark.parametrize("number", [0, 1])
def test_the_expert_does_every_task(scene_name, number, world_of):
    world = world_of(*scene_name)
    expert = begin(world, number)
    progress = [world.progress()]
    assert progress[0] < 0.5
    while not world.is_success() and len(progress) < world.task.time_limit_s * FPS:
        world.step(expert.decide().action)
        progress.append(world.progress())
        assert all(0.0 <= value <= 1.0 for value in world.terms().values())
    assert world.is_success()
    assert progress[-1] == 1.0
    assert all(0.0 <= value < 1.0 for value in progress[:-1])


def test_success_takes_ten_ticks_in_a_row(world_of):
    world = world_of("lift_cube", "clean")
    expert = begin(world)
    met = []
    while not world.is_success():
        world.step(expert.decide().action)
        met.append(world.task.is_success(world))
    assert met[-10:] == [True] * 10
    assert not met[-11]


def test_doing_nothing_is_no_success_and_moves_nothing(scene_name, world_of):
    world = world_of(*scene_name)
    begin(world)
    positions = {prop.name: world.position(prop.name) for prop in world.props}
    pose = world.joints()
    for _ in range(60):
        world.step(pose)
    assert not world.is_success()
    for name, position in positions.items():
        np.testing.assert_allclose(world.position(name), position, atol=2e-3, err_msg=name)


def test_a_gripped_cube_stays_gripped_while_the_arm_is_disturbed(world_of):
    world = world_of("lift_cube", "clean")
    expert = begin(world)
    while not world.is_success():
        world.step(expert.decide().action)
    assert world.model.neq == 0  # nothing but friction holds it
    pose, rng = expert.decide().action, np.random.default_rng(0)
    for tick in range(2 * FPS):
        swing = 12.0 * np.sin(2 * np.pi * 1.5 * tick / FPS) * np.array([1, 0.3, 0.3, 0.5, 0, 0])
        world.step(pose + swing + rng.normal(0, 1.0, 6) * [1, 1, 1, 1, 1, 0])
        assert world.is_gripped("cube") or world.position("cube")[2] > 0.05
    assert world.is_gripped("cube")
    assert np.linalg.norm(world.position("cube") - world.pinch_point()) < 0.02


def test_an_opened_gripper_drops_the_cube(world_of):
    world = world_of("lift_cube", "clean")
    expert = begin(world)
    while not world.is_success():
        world.step(expert.decide().action)
    pose = world.joints()
    pose[5] = 60.0
    for _ in range(FPS):
        world.step(pose)
    assert not world.is_touched("cube")
    assert world.position("cube")[2] < 0.03


@pytest.mark.parametrize("level", ["clean", "randomised"])
def test_the_same_initial_state_and_actions_give_the_same_states(level, world_of):
    world = world_of("sort_cubes", level)
    expert = begin(world, 3)
    actions, states = [], []
    for _ in range(60):
        actions.append(expert.decide().action)
        world.step(actions[-1])
        states.append(state(world))
    begin(world, 4)
    world.step(HOME)
    begin(world, 3)
    for action, expected in zip(actions, states, strict=True):
        world.step(action)
        np.testing.assert_array_equal(state(world), expected)


def with_latency(ticks: int):
    initial = training_initial_state("lift_cube", "randomised", 0)
    return dataclasses.replace(initial, variation=dataclasses.replace(initial.variation, latency_ticks=ticks))


@pytest.mark.parametrize("ticks", [0, 1, 2])
def test_commands_take_effect_after_the_latency(ticks, world_of):
    world = world_of("lift_cube", "randomised")
    world.reset(with_latency(ticks))
    pose = world.joints()
    for _ in range(30):
        world.step(pose)
    rest, moved = world.joints()[0], []
    for _ in range(4):
        world.step(pose + [30.0, 0, 0, 0, 0, 0])
        moved.append(abs(world.joints()[0] - rest) > 0.5)
    assert moved == [tick >= ticks for tick in range(4)]


def test_a_reset_discards_pending_commands(world_of):
    world = world_of("lift_cube", "randomised")
    world.reset(with_latency(2))
    world.step(HOME + [60.0, 0, 0, 0, 0, 0])
    world.reset(with_latency(2))
    before = world.joints()[0]
    for _ in range(3):
        world.step(world.initial_state.joints)
    assert abs(world.joints()[0] - before) < 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_diverged_state_is_detected_and_is_no_success(value, world_of):
    world = world_of("place_cube", "clean")
    expert = begin(world)
    while not world.is_success():
        world.step(expert.decide().action)
    world.data.qvel[:] = value
    world.step(HOME)
    assert not world.is_finite()
    assert not world.is_success()
    assert world.progress() == 0.0
    assert world.terms() == {}
    begin(world)
    world.step(HOME)
    assert world.is_finite()


def test_the_experts_command_depends_on_the_state_only(scene_name, world_of):
    world = world_of(*scene_name)
    expert = begin(world)
    for tick in range(50):
        decision = expert.decide()
        if tick % 7 == 0:
            before = state(world)
            for again in (expert.decide(), Expert(world).decide()):
                np.testing.assert_array_equal(again.action, decision.action)
                assert again.phase == decision.phase
            np.testing.assert_array_equal(state(world), before)
        world.step(decision.action)


def test_the_expert_goes_home_from_anywhere(world_of):
    world = world_of("place_cube", "clean")
    expert = begin(world)
    for _ in range(25):
        world.step(expert.decide().action)
    assert np.abs(world.joints() - HOME)[:5].max() > 15.0
    for _ in range(60):
        world.step(expert.go_home().action)
    assert np.abs(world.joints() - HOME)[:5].max() < 2.0


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_expert_passes_a_post_on_either_side_of_one_initial_state(side, world_of):
    world = world_of("pass_post", "clean")
    initial = training_initial_state("pass_post", "clean", 0)
    world.reset(dataclasses.replace(initial, goal=dataclasses.replace(initial.goal, side=side)))
    expert, beside = Expert(world), []
    while not world.is_success() and world.ticks < world.task.time_limit_ticks:
        world.step(expert.decide().action)
        pinch, post = world.pinch_point(), world.position("post")
        if abs(pinch[0] - post[0]) < 0.02:
            beside.append(pinch[1] - post[1])
    assert world.is_success()
    assert beside
    assert all(gap > 0.04 if side == "left" else gap < -0.04 for gap in beside)


def test_a_moved_post_is_no_success(world_of):
    world = world_of("pass_post", "clean")
    world.reset(training_initial_state("pass_post", "clean", 0))
    expert = Expert(world)
    world.data.joint("post").qpos[0] += 0.01
    while world.ticks < world.task.time_limit_ticks:
        world.step(expert.decide().action)
    assert world.terms()["low"] == 1.0
    assert not world.is_success()


def test_the_expert_recovers_from_a_knocked_cube(world_of):
    world = world_of("lift_cube", "clean")
    expert = begin(world)
    for _ in range(25):
        world.step(expert.decide().action)
    joint = world.data.joint("cube")
    joint.qpos[:] = [0.22, -0.08, 0.015, 1, 0, 0, 0]
    joint.qvel[:] = 0.0
    for _ in range(120):
        world.step(expert.decide().action)
    assert world.is_success()


@pytest.mark.parametrize(("action", "message"), [(np.zeros(5), "shape"), (np.full(6, np.nan), "non-finite")])
def test_an_invalid_action_does_not_change_the_world(action, message, world_of):
    world = world_of("lift_cube", "clean")
    begin(world)
    before = state(world)
    with pytest.raises(ValueError, match=message):
        world.step(action)
    np.testing.assert_array_equal(state(world), before)


def test_driving_each_physics_step_equals_stepping(world_of):
    world, ends = world_of(), []
    initial = training_initial_state("lift_cube", "clean", 0)
    goal = HOME + [10.0, 5.0, -5.0, 0.0, 20.0, -30.0]
    for drive in (False, True):
        world.reset(initial)
        for _ in range(10):
            if drive:
                for _ in range(6):
                    world.drive(to_radians(goal), np.array([1, 1, 1, 1, 1, 0.5]))
            else:
                world.step(goal)
        ends.append((world.data.qpos.copy(), world.ticks, world.progress()))
    np.testing.assert_allclose(ends[0][0], ends[1][0], atol=1e-9)
    assert ends[0][1:] == ends[1][1:]


def test_joints_without_torque_fall_and_a_reset_restores_the_torque(world_of):
    world, initial = world_of(), training_initial_state("lift_cube", "clean", 0)
    world.reset(initial)
    for _ in range(90):
        world.drive(to_radians(HOME), np.array([1, 0, 0, 0, 1, 0.5]))
    assert np.abs(world.joints() - HOME)[:4].max() > 10
    world.reset(initial)
    for _ in range(30):
        world.step(HOME)
    assert np.abs(world.joints() - HOME).max() < 1.0


def test_a_hand_holds_the_arm_and_nothing_else_moves(world_of):
    world = world_of()
    world.reset(training_initial_state("lift_cube", "clean", 0))
    before = world.data.qpos.copy()
    world.hold(to_radians(HOME + [20.0, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(world.data.qpos[6:], before[6:])
    assert world.joints()[0] == pytest.approx(20.0, abs=0.1)
    assert world.ticks == 0
