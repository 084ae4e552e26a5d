# SPDX-License-Identifier: Apache-2.0
"""The guard: its output stays inside the limits for every input, and commands inside the limits pass."""

import json
import math

import mujoco
import numpy as np
import pytest
import torch

from lerobot_processor_so101.arm import HOME, arm_model_path
from lerobot_processor_so101.guard import Guard, GuardLimits, reach
from lerobot_processor_so101.guard.points import DISPLACEMENTS

TICK = 1 / 30


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def guard_at(clock, joints=HOME, **limits) -> Guard:
    guard = Guard(GuardLimits(**limits), clock)
    guard.initialise(joints)
    clock.now += TICK
    return guard


def adversarial(rng, last):
    """A command of one of the kinds that policies, teleoperators and faults produce."""
    kind = rng.integers(8)
    near = last + rng.normal(0, 3, 6)
    match kind:
        case 0:
            near[rng.integers(6)] = rng.choice([np.nan, np.inf, -np.inf])
        case 1:
            near = rng.normal(0, 10.0 ** rng.uniform(1, 300), 6)
        case 2:
            near = np.where(rng.random(6) < 0.5, 170.0, -170.0)
        case 3:
            return near[: rng.integers(5)]
        case 4:
            near = HOME + [0, 150, 0, 0, 0, 0]  # into the table
        case 5:
            return rng.choice([None, "left"])
        case 6:
            near = rng.uniform(-200, 200, 6)
    return near


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_path(str(arm_model_path()))


def poses(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform([-110, -100, -96, -95, -157, 0], [110, 100, 96, 95, 157, 100], (count, 6))


def test_reach_agrees_with_mujoco(model):
    data = mujoco.MjData(model)
    body = model.body("gripper").id
    joints = poses(200)
    tools, lowest = reach(joints)
    for pose, tool, low in zip(joints, tools, lowest, strict=True):
        data.qpos[:] = np.radians(pose)
        data.qpos[5] = math.radians(-10 + 1.1 * pose[5])
        mujoco.mj_kinematics(model, data)
        expected = data.xpos[body] + data.xmat[body].reshape(3, 3) @ [0, 0, -0.0981274]
        np.testing.assert_allclose(tool, expected, atol=1e-9)
        parts = [_lowest(model, data, part) for part in ("lower_arm", "gripper", "moving_jaw_so101_v1")]
        assert min(parts) - 1e-4 < low < min(parts) + 0.008  # some points represent the meshes


def _lowest(model, data, body):
    heights = []
    for geom in np.flatnonzero(model.geom_bodyid == model.body(body).id):
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            first, count = (
                model.mesh_vertadr[model.geom_dataid[geom]],
                model.mesh_vertnum[model.geom_dataid[geom]],
            )
            turn = data.geom_xmat[geom].reshape(3, 3)
            heights.append((model.mesh_vert[first : first + count] @ turn[2]).min() + data.geom_xpos[geom][2])
    if body == "gripper":
        heights.append(_lowest(model, data, "camera_mount"))
    return min(heights)


def test_commands_inside_the_limits_pass_unchanged(clock):
    guard = guard_at(clock)
    for tick in range(60):
        command = HOME + [20 * math.sin(tick / 20), 10 * math.sin(tick / 15), 0, 0, 5, 20]
        command[4:] = HOME[4:]
        np.testing.assert_array_equal(guard.check(command), command)
        clock.now += TICK
    assert guard.report() == "guard: 60 commands, 60 passed, 0 clamped, 0 held"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ([math.nan, 0, 0, 0, 0, 0], "no six finite positions"),
        ([0, 0, math.inf, 0, 0, 0], "no six finite positions"),
        ([0] * 5, "no six finite positions"),
        ([[0] * 6], "no six finite positions"),
        (None, "no six finite positions"),
        ({"pan": 3}, "no six finite positions"),
        (["a"] * 6, "no six finite positions"),
        ([np.zeros(2)] + [0] * 5, "no six finite positions"),
        ([10**400] * 6, "no six finite positions"),
        (torch.zeros(6, requires_grad=True), "no six finite positions"),
    ],
)
def test_malformed_commands_hold(clock, command, reason):
    guard = guard_at(clock)
    np.testing.assert_array_equal(guard.check(command), HOME)
    assert guard.report() == f"guard: 1 commands, 0 passed, 0 clamped, 1 held ({reason} 1)"


@pytest.mark.parametrize("seed", range(5))
def test_no_stream_of_commands_gets_past_the_limits(clock, seed):
    limits = GuardLimits(velocity=120, acceleration=1000, table=0.01, workspace=(0, -0.3, 0, 0.4, 0.3, 0.4))
    guard = Guard(limits, clock)
    rng = np.random.default_rng(seed)
    guard.initialise(HOME)
    sent, velocity = HOME, np.zeros(6)
    for _ in range(1500):
        passed = rng.choice([0.0, 1e-4, 0.01, TICK, 0.2, 3.0])
        clock.now += passed
        new = guard.check(adversarial(rng, sent))
        assert np.isfinite(new).all()
        assert (new >= limits.lower).all()
        assert (new <= limits.upper).all()
        tick = min(passed, 0.1)
        assert (np.abs(new - sent) <= limits.velocities * tick + 1e-9).all()
        if tick:
            speed = (new - sent)[:5] / tick
            before = velocity[:5] if passed <= limits.timeout else np.zeros(5)
            onward = np.where(speed * before > 0, np.abs(before), 0)
            assert (np.abs(speed) <= onward + limits.acceleration * tick + 1e-6).all()
            velocity = (new - sent) / tick
        else:
            velocity = np.zeros(6)
        tool, lowest = reach(new[None])
        assert lowest[0] >= limits.table - 1e-9
        assert (tool[0] >= np.array(limits.workspace[:3]) - 1e-9).all()
        assert (tool[0] <= np.array(limits.workspace[3:]) + 1e-9).all()
        sent = new
    assert guard.counts["hold"]
    assert guard.counts["clamp"]
    assert guard.counts["pass"]


def test_no_point_moves_further_than_its_bound():
    """The guard computes no kinematics where this bound rules out that the arm leaves its limits."""
    rng, box = np.random.default_rng(0), np.array(GuardLimits().workspace)
    one = poses(5000)
    other = one + rng.normal(0, 1, one.shape) * 10.0 ** rng.uniform(-1, 2, (len(one), 1))
    (tools, lows), (tools_2, lows_2) = reach(one), reach(other)
    moved = np.abs(other - one) @ DISPLACEMENTS + 1e-9
    assert (np.abs(lows_2 - lows) <= moved).all()
    outside = [np.maximum(box[:3] - tool, tool - box[3:]).max(1) for tool in (tools, tools_2)]
    assert (np.abs(outside[1] - outside[0]) <= moved).all()
    assert (DISPLACEMENTS < 0.015).all()


def test_stopping_always_passes(clock):
    guard = guard_at(clock, acceleration=600)
    at = HOME
    for _ in range(10):  # accelerate
        at = guard.check(at + [30, 0, 0, 0, 0, 0])
        clock.now += TICK
    np.testing.assert_array_equal(guard.check(at), at)


def test_a_command_into_the_table_slides_along_it(clock):
    guard = guard_at(clock, table=0.02)
    low = np.array([0.0, 10, 30, 60, -90, 50])
    at = HOME
    for pan in np.linspace(0, 30, 90):
        at = guard.check(low + [pan, 40, 0, 0, 0, 0])  # far below the table
        clock.now += TICK
    assert at[0] > 25
    assert 0.02 <= reach(at[None])[1][0] < 0.03


def test_an_arm_outside_may_come_in_but_go_no_further_out(clock):
    outside = HOME + [115, 0, 0, 0, 0, 0]  # beyond the range of shoulder_pan
    outside[0] = 115
    guard = guard_at(clock, joints=outside)
    assert guard.check(outside + [5, 0, 0, 0, 0, 0])[0] == 115
    clock.now += TICK
    assert 110 <= guard.check(outside - [3, 0, 0, 0, 0, 0])[0] < 115
    below = np.array([0.0, 60, 30, 60, -90, 50])
    depth = reach(below[None])[1][0]
    assert depth < -0.02
    guard = guard_at(clock, joints=below)
    for _ in range(30):
        at = guard.check(below + [0, 20, 0, 0, 0, 0])
        clock.now += TICK
    assert reach(at[None])[1][0] >= depth - 1e-9
    for _ in range(90):
        at = guard.check(HOME)
        clock.now += TICK
    np.testing.assert_allclose(at, HOME)


def test_a_command_from_an_old_observation_holds(clock):
    guard = guard_at(clock, max_age=0.2)
    guard.observe()
    clock.now += 0.3
    np.testing.assert_array_equal(guard.check(HOME + 1), HOME)
    clock.now += 5
    assert (guard.check(HOME + 1) != HOME).any()  # from no observation, as in homing
    guard.observe()
    clock.now += TICK
    assert (guard.check(HOME + 1) != HOME).any()
    assert "stale observation 1" in guard.report()


def test_with_measurements_all_commands_after_a_late_one_hold(clock):
    guard = guard_at(clock, max_age=0.2, max_blind=2.0)
    guard.observe(HOME)
    clock.now += 0.3
    for _ in range(50):
        np.testing.assert_array_equal(guard.check(HOME + 1), HOME)
        clock.now += TICK
    guard.observe(HOME)
    moved = [(guard.check(HOME + 1 + tick % 2) != HOME).any() for tick in range(10)]
    assert all(moved)
    clock.now += 2.1  # longer than commands may go on without an observation
    assert guard.counts["stale observation"] == 50
    guard.check(HOME)
    assert guard.counts["stale observation"] == 51


class LoadedJoint:
    """A joint on a servo that yields under load, with gravity, below an obstacle that may disappear."""

    def __init__(self, stiffness=0.31, gravity=0.9, obstacle=0.0):  # N.m/deg, N.m, deg
        self.sag, self.obstacle, self.position = gravity / stiffness, obstacle, obstacle

    def follow(self, goal):
        """Move towards the balance of servo and gravity."""
        balance = min(goal - self.sag, self.obstacle)
        self.position += np.clip(balance - self.position, -4, 4)  # deg per tick


@pytest.mark.parametrize("gravity", [0.0, 0.9, 2.0])
def test_a_stuck_joint_is_eased_off_and_not_dropped(clock, gravity):
    joint = LoadedJoint(gravity=gravity)
    pose = HOME + [0, 0, 40, 0, 0, 0]
    joint.obstacle = joint.position = pose[2]
    guard = guard_at(clock, joints=pose + [0, 0, joint.sag, 0, 0, 0], velocity=60)

    def run(seconds):
        leads, lowest = [], joint.position
        for _ in range(round(seconds / TICK)):
            guard.observe(np.where(np.arange(6) == 2, joint.position, pose))
            goal = guard.check(np.where(np.arange(6) == 2, 90.0, pose))[2]
            joint.follow(goal)
            leads.append(goal - joint.position - joint.sag)
            lowest = min(lowest, joint.position)
            clock.now += TICK
        return leads, lowest

    leads, lowest = run(6)
    assert max(leads) == pytest.approx(5 + 60 * 0.05 - joint.sag)  # pushes first
    assert np.mean(leads[-90:]) < 5  # deg beyond what holds the joint
    assert lowest > joint.obstacle - 5
    assert joint.position > joint.obstacle - 1.5
    joint.obstacle += 30
    run(6)
    assert joint.position > 60  # it continues by itself


def test_goals_stay_near_the_measured_arm(clock):
    guard = guard_at(clock, velocity=60, tracking_error=5)
    for _ in range(60):
        guard.observe(HOME)
        goal = guard.check(HOME + 40)
        assert np.abs(goal - HOME)[:5].max() < 5 + 60 * 0.05 + 1e-9
        clock.now += TICK
    assert guard.counts["tracking error"]


def test_after_a_pause_the_arm_starts_from_rest(clock):
    guard = guard_at(clock, acceleration=600, timeout=0.5)
    at = HOME
    for _ in range(10):
        at = guard.check(at + [30, 0, 0, 0, 0, 0])
        clock.now += TICK
    clock.now += 1.0
    after = guard.check(at + [10, 0, 0, 0, 0, 0])
    assert after[0] - at[0] == pytest.approx(min(10, 600 * 0.1 * 0.1))


def test_a_clock_that_runs_backwards_holds(clock):
    guard = guard_at(clock)
    clock.now -= 10
    np.testing.assert_array_equal(guard.check(HOME + 1), HOME)
    clock.now += 11
    assert (guard.check(HOME + 1) != HOME).any()


def test_the_current_pose_must_be_known(clock):
    guard = Guard(GuardLimits(), clock)
    with pytest.raises(RuntimeError, match="current pose is unknown; call initialise"):
        guard.check(HOME)
    with pytest.raises(ValueError, match="six finite"):
        guard.initialise([math.nan] * 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"velocity": 0}, "velocity: found 0, expected more than 0"),
        ({"velocity": math.nan}, "velocity: found nan, expected finite"),
        ({"lower": [0] * 5}, "lower: found 5 numbers, expected 6"),
        ({"lower": [200] * 6}, "lower, upper: found 200.0 to 110.0 for shoulder_pan"),
        ({"max_blind": 0.1}, "max_blind: found 0.1, expected at least max_age, 0.5"),
        ({"workspace": [0, 0, 0, 1, -1, 1]}, "workspace: found"),
    ],
)
def test_invalid_limits(changes, message):
    with pytest.raises(ValueError, match=message):
        GuardLimits(**changes)


def test_limits_are_plain_numbers():
    """They are written to configurations that people read."""
    assert json.dumps(GuardLimits().__dict__)
