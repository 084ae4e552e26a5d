# SPDX-License-Identifier: Apache-2.0
"""How the emulated arm really moves under the guard, by a witness that the code under test cannot read.

A speed is a distance over 0.1 s: gear play (0.5 deg) and elastic gears make single physics steps faster, and
no arm can respond in less.
"""

import numpy as np
import pytest

from lerobot_processor_so101 import arm
from lerobot_processor_so101.guard import GuardLimits

PAN = 0
TOLERANCE = 1.2


def at(**changes):
    """A command at home, except for some joints."""
    return arm.HOME + [changes.get(joint, 0.0) for joint in arm.JOINTS]


FAR = at(shoulder_pan=105)


@pytest.mark.parametrize(("limit", "fps"), [(60, 30), (30, 10), (180, 30)])
def test_no_joint_is_faster_than_its_limit(connect, witness, limit, fps):
    robot, clock = connect(limits=GuardLimits(velocity=limit))
    seen = witness(robot, clock)
    seen.run(1.5, fps, lambda t: FAR)
    seen.run(1.0, fps, lambda t: at(shoulder_pan=90 if t % 0.4 < 0.2 else -90))
    seen.run(0.5, fps, lambda t: at(shoulder_pan=-60, shoulder_lift=40, elbow_flex=-60, wrist_flex=-90))
    speed = seen.speed()[: arm.GRIPPER]
    assert limit * 0.9 < speed[PAN]
    assert (speed < limit * TOLERANCE).all()
    assert seen.speed(1 / 30)[PAN] < limit * TOLERANCE


def test_a_reversed_joint_does_not_catch_up_faster_than_its_limit(connect, witness):
    """A servo that speeds up faster than the arm can follow lags, and catches up at full torque."""
    robot, clock = connect(limits=GuardLimits(velocity=120, acceleration=1200))
    seen, rng, fps = witness(robot, clock), np.random.default_rng(0), 16
    goals = np.repeat(rng.uniform(-180, 180, (26, arm.GRIPPER + 1)), 5, axis=0)
    seen.run(8.0, fps, lambda t: goals[round(t * fps)])
    assert (seen.speed()[: arm.GRIPPER] < 120 * TOLERANCE).all()


@pytest.mark.parametrize("jam", [1.5, pytest.param(5.0, marks=pytest.mark.slow)])
def test_a_joint_that_comes_free_keeps_its_limit(virtual_arm, connect, witness, jam):
    robot, clock = connect(limits=GuardLimits(velocity=30))
    seen, faults = witness(robot, clock), virtual_arm.follower.faults
    seen.run(0.3, 30, lambda t: FAR)
    faults.jam("shoulder_pan")
    seen.run(jam, 30, lambda t: FAR)
    faults.clear()
    seen.run(2.5, 30, lambda t: FAR)
    assert seen.speed()[PAN] < 30 * TOLERANCE
    assert seen.joints[-1][PAN] > seen.joints[0][PAN] + 30  # it continues by itself


def test_a_stuck_joint_is_eased_off_before_it_is_overloaded(virtual_arm, connect, witness):
    robot, clock = connect(limits=GuardLimits(velocity=60))
    seen, loads = witness(robot, clock), []
    virtual_arm.follower.faults.jam("shoulder_pan")

    def push(t):
        loads.append(abs(virtual_arm.follower.joints.load[PAN]))
        return FAR

    seen.run(4.0, 30, push)
    assert max(loads[:20]) > 0.9
    assert np.mean(loads[-60:]) < 0.5
    assert virtual_arm.follower.bus.servo("shoulder_pan").get("Status") == 0
    assert robot.guard.counts["tracking error"]


def test_commands_within_the_limits_are_not_changed_by_measurements(connect, witness):
    robot, clock = connect(limits=GuardLimits(velocity=120))
    seen = witness(robot, clock)
    seen.run(
        4.0, 30, lambda t: at(shoulder_pan=30 * np.sin(2 * t), elbow_flex=15 * np.sin(3 * t), gripper=20)
    )
    assert robot.guard.counts["tracking error"] == robot.guard.counts["hold"] == 0
    assert np.abs(np.array(seen.joints)[-60:, PAN]).max() > 25


def test_the_servos_get_the_limit_and_lose_it_again(virtual_arm, connect):
    servos = virtual_arm.follower.bus.servos
    for joint, phase in (("elbow_flex", 8), ("wrist_flex", 12)):  # units of 50 steps/s and of 1 step/s
        virtual_arm.follower.bus.servo(joint).set("Phase", phase)
    robot, _ = connect(limits=GuardLimits(velocity=60, gripper_velocity=50, acceleration=1000))
    found = {servo.name: servo.get("Goal_Velocity") for servo in servos}
    gripper = robot.calibration["gripper"]
    assert found.pop("gripper") == (gripper.range_max - gripper.range_min) // 2
    assert found.pop("elbow_flex") == 13  # 650 of 682 steps/s
    assert set(found.values()) == {682}
    accelerations = {servo.name: servo.get("Acceleration") for servo in servos}
    assert accelerations.pop("gripper") == 254
    assert set(accelerations.values()) == {113}  # 11,300 of 11,378 steps/s²
    robot.disconnect()
    assert {servo.get("Goal_Velocity") for servo in servos} == {0}


def test_a_chunk_from_an_old_observation_holds(virtual_arm, connect, witness):
    robot, clock = connect()
    seen = witness(robot, clock)
    robot.get_observation()
    clock.now += 3.0
    seen.run(1.0, 30, lambda t: FAR, observe=False)
    assert robot.guard.counts["stale observation"] == robot.guard.counts["hold"] == 30
    seen.run(1.0, 30, lambda t: FAR)
    assert robot.guard.counts["hold"] == 30
    robot.get_observation()
    seen.run(10.0, 10, lambda t: arm.HOME, observe=False)  # homing takes 3 s without an observation
    assert robot.guard.counts["stale observation"] == 30 + 50
