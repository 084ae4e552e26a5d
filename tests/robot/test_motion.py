# SPDX-License-Identifier: Apache-2.0
"""How the emulated arm really moves under the guard, by a witness that the code under test cannot read.

A speed is a distance over 0.1 s: gear play (0.5 deg) and elastic gears make single physics steps faster, and
no arm can respond in less.
"""

import numpy as np
import pytest

from lerobot_env_so101_workbench.virtual_arm.sts_servo import Servo, ShaftState
from lerobot_processor_so101 import arm
from lerobot_processor_so101.guard import Guard, GuardLimits, reach
from lerobot_processor_so101.guard.servo_path import Motion, servo_path

PAN = 0
TOLERANCE = 1.2
STEPS_PER_DEGREE = 4096 / 360
TICK = 1 / 240  # s, of the ideal servos


@pytest.fixture
def rng():
    return np.random.default_rng(0)


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
    assert limit * 0.8 < speed[PAN]
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
    assert found.pop("elbow_flex") == 11  # 550 of 580 steps/s
    assert set(found.values()) == {580}  # 51 deg/s
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


class IdealShaft:
    """A shaft that is always where its servo drives it."""

    def __init__(self, position):
        self.position = position

    def read(self):
        return ShaftState(self.position)

    def drive(self, goal, torque):
        self.position = goal


class IdealArm:
    """Six emulated servos that turn ideal shafts, within a speed [deg/s] and an acceleration [deg/s²]."""

    def __init__(self, pose, speed, acceleration):
        self.shafts = [IdealShaft(value * STEPS_PER_DEGREE) for value in pose]
        self.servos = [Servo(joint, shaft) for joint, shaft in zip(arm.JOINTS, self.shafts, strict=True)]
        for servo in self.servos:
            servo.set("Torque_Enable", 1)
            servo.set("Goal_Velocity", int(speed * STEPS_PER_DEGREE))
            servo.set("Acceleration", int(acceleration * STEPS_PER_DEGREE / 100))

    def move(self, goals, seconds):
        """Send goals (6,) [deg], and return the poses of the next seconds, (T, 6) [deg]."""
        for servo, goal in zip(self.servos, goals, strict=True):
            servo.set("Goal_Position", 2048 + round(goal * STEPS_PER_DEGREE))
        poses = []
        for _ in range(round(seconds / TICK)):
            for servo in self.servos:
                servo.tick(TICK)
            poses.append([shaft.position / STEPS_PER_DEGREE for shaft in self.shafts])
        return np.array(poses)


def test_the_path_of_servos_is_predicted(rng):
    limits = GuardLimits(velocity=120, acceleration=1200)
    for _ in range(20):
        moving = IdealArm(np.zeros(6), limits.velocity, limits.acceleration)
        before = moving.move(rng.uniform(-40, 40, 6), 0.2)
        motion = Motion(before[-1], (before[-1] - before[-2]) / TICK)
        goals = rng.uniform(-40, 40, 6)
        found = servo_path(motion, goals[None], limits)[:, 0, :5]
        expected = moving.move(goals, 0.2)[round(0.05 / TICK) - 1 :: round(0.05 / TICK), :5]
        assert np.abs(found - expected).max() < 3.0  # deg: four steps of 0.05 s


def test_joints_that_do_not_arrive_together_stay_above_the_table():
    rng = np.random.default_rng(1)
    limits = GuardLimits(velocity=120, acceleration=1200, table=0.01)
    clock = type("Clock", (), {"now": 100.0, "__call__": lambda self: self.now})()
    moving = IdealArm(arm.HOME, limits.servo_velocities[0], limits.servo_accelerations[0])
    guard, lowest = Guard(limits, clock), []
    guard.initialise(arm.HOME)
    pose = arm.HOME
    for number in range(600):
        if number % 6 == 0:  # down to the table and back, each joint by itself
            goal = np.array([rng.uniform(-30, 30), *rng.uniform((0, -70, -60), (90, 60, 60)), 0, 0])
        clock.now += 1 / 30
        guard.observe(pose)
        poses = moving.move(guard.check(goal), 1 / 30)
        pose = poses[-1]
        lowest.append(reach(poses)[1].min())
    assert min(lowest) > limits.table - 0.003
    assert np.mean(np.array(lowest) < 0.05) > 0.1  # it works near the table
