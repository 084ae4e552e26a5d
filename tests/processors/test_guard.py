# SPDX-License-Identifier: Apache-2.0
"""The guard: whatever it is given, what it says is inside the limits, and what is inside passes."""

import json
import math

import mujoco
import numpy as np
import pytest
import torch

from lerobot_processor_so101.arm_model import arm_model_path
from lerobot_processor_so101.guard import Guard, GuardLimits, reach

HOME = np.array([0.0, -80.0, 30.0, 85.0, -90.0, 50.0])
TICK = 1 / 30


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def standing(clock, at=HOME, **limits) -> Guard:
    guard = Guard(GuardLimits(**limits), clock)
    guard.stand(at)
    clock.now += TICK
    return guard


def adversarial(rng, last):
    """A command of one of the kinds that policies, teleoperators and faults come up with."""
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
        assert min(parts) - 1e-4 < low < min(parts) + 0.008  # some points stand for the meshes


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


def test_what_is_inside_passes_unchanged(clock):
    guard = standing(clock)
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
def test_what_is_no_command_holds(clock, command, reason):
    guard = standing(clock)
    np.testing.assert_array_equal(guard.check(command), HOME)
    assert guard.report() == f"guard: 1 commands, 0 passed, 0 clamped, 1 held ({reason} 1)"


@pytest.mark.parametrize("seed", range(5))
def test_no_stream_of_commands_gets_past_the_limits(clock, seed):
    limits = GuardLimits(velocity=120, acceleration=1000, table=0.01, workspace=(0, -0.3, 0, 0.4, 0.3, 0.4))
    guard = Guard(limits, clock)
    rng = np.random.default_rng(seed)
    guard.stand(HOME)
    told, velocity = HOME, np.zeros(6)
    for _ in range(1500):
        passed = rng.choice([0.0, 1e-4, 0.01, TICK, 0.2, 3.0])
        clock.now += passed
        new = guard.check(adversarial(rng, told))
        assert np.isfinite(new).all()
        assert (new >= limits.lower).all()
        assert (new <= limits.upper).all()
        tick = min(passed, 0.1)
        assert (np.abs(new - told) <= limits.velocities * tick + 1e-9).all()
        if tick:
            speed = (new - told)[:5] / tick
            before = velocity[:5] if passed <= limits.timeout else np.zeros(5)
            onward = np.where(speed * before > 0, np.abs(before), 0)
            assert (np.abs(speed) <= onward + limits.acceleration * tick + 1e-6).all()
            velocity = (new - told) / tick
        else:
            velocity = np.zeros(6)
        tool, lowest = reach(new[None])
        assert lowest[0] >= limits.table - 1e-9
        assert (tool[0] >= np.array(limits.workspace[:3]) - 1e-9).all()
        assert (tool[0] <= np.array(limits.workspace[3:]) + 1e-9).all()
        told = new
    assert guard.counts["hold"]
    assert guard.counts["clamp"]
    assert guard.counts["pass"]


def test_stopping_is_never_refused(clock):
    guard = standing(clock, acceleration=600)
    at = HOME
    for _ in range(10):  # get up to speed
        at = guard.check(at + [30, 0, 0, 0, 0, 0])
        clock.now += TICK
    np.testing.assert_array_equal(guard.check(at), at)


def test_a_command_into_the_table_slides_along_it(clock):
    guard = standing(clock, table=0.02)
    low = np.array([0.0, 10, 30, 60, -90, 50])
    at = HOME
    for pan in np.linspace(0, 30, 90):
        at = guard.check(low + [pan, 40, 0, 0, 0, 0])  # far below the table
        clock.now += TICK
    assert at[0] > 25
    assert 0.02 <= reach(at[None])[1][0] < 0.03


def test_an_arm_outside_may_come_in_and_go_no_further_out(clock):
    outside = HOME + [115, 0, 0, 0, 0, 0]  # beyond the range of shoulder_pan
    outside[0] = 115
    guard = standing(clock, at=outside)
    assert guard.check(outside + [5, 0, 0, 0, 0, 0])[0] == 115
    clock.now += TICK
    assert 110 <= guard.check(outside - [3, 0, 0, 0, 0, 0])[0] < 115
    below = np.array([0.0, 60, 30, 60, -90, 50])
    depth = reach(below[None])[1][0]
    assert depth < -0.02
    guard = standing(clock, at=below)
    for _ in range(30):
        at = guard.check(below + [0, 20, 0, 0, 0, 0])
        clock.now += TICK
    assert reach(at[None])[1][0] >= depth - 1e-9
    for _ in range(90):
        at = guard.check(HOME)
        clock.now += TICK
    np.testing.assert_allclose(at, HOME)


def test_the_answer_to_an_old_observation_holds(clock):
    guard = standing(clock, max_age=0.2)
    guard.observe()
    clock.now += 0.3
    np.testing.assert_array_equal(guard.check(HOME + 1), HOME)
    clock.now += 5
    assert (guard.check(HOME + 1) != HOME).any()  # what is not seen before moving, such as the way home
    guard.observe()
    clock.now += TICK
    assert (guard.check(HOME + 1) != HOME).any()
    assert "stale observation 1" in guard.report()


def test_after_a_pause_the_arm_starts_from_rest(clock):
    guard = standing(clock, acceleration=600, timeout=0.5)
    at = HOME
    for _ in range(10):
        at = guard.check(at + [30, 0, 0, 0, 0, 0])
        clock.now += TICK
    clock.now += 1.0
    after = guard.check(at + [10, 0, 0, 0, 0, 0])
    assert after[0] - at[0] == pytest.approx(min(10, 600 * 0.1 * 0.1))


def test_a_clock_that_runs_backwards_holds(clock):
    guard = standing(clock)
    clock.now -= 10
    np.testing.assert_array_equal(guard.check(HOME + 1), HOME)
    clock.now += 11
    assert (guard.check(HOME + 1) != HOME).any()


def test_where_the_arm_stands_must_be_known(clock):
    guard = Guard(GuardLimits(), clock)
    with pytest.raises(RuntimeError, match="where the arm stands"):
        guard.check(HOME)
    with pytest.raises(ValueError, match="six finite"):
        guard.stand([math.nan] * 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"velocity": 0}, "velocity: found 0, expected more than 0"),
        ({"velocity": math.nan}, "velocity: found nan, expected finite"),
        ({"lower": [0] * 5}, "lower: found 5 numbers, expected 6"),
        ({"lower": [200] * 6}, "lower, upper: found 200.0 to 110.0 for shoulder_pan"),
        ({"workspace": [0, 0, 0, 1, -1, 1]}, "workspace: found"),
    ],
)
def test_limits_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        GuardLimits(**changes)


def test_limits_are_plain_numbers():
    """They stand in configurations that people read."""
    assert json.dumps(GuardLimits().__dict__)
