# SPDX-License-Identifier: Apache-2.0
"""The guarded follower on emulated servos: the goals that reach them, and how faults are reported."""

import math
import os

import numpy as np
import pytest
import torch
from lerobot.robots import make_robot_from_config
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

from lerobot_env_so101_workbench.virtual_arm import bus as virtual_bus
from lerobot_env_so101_workbench.virtual_arm.arm import VirtualArmConfig
from lerobot_processor_so101 import arm
from lerobot_processor_so101.arm import JOINTS
from lerobot_processor_so101.guard import GuardLimits, reach
from lerobot_robot_so101 import SO101GuardedConfig, bus as retrying_bus, doctor, so101_guarded

TICK = 1 / 30
HOME = dict(zip(JOINTS, arm.HOME.tolist(), strict=True))


def goals(robot, virtual_arm) -> np.ndarray:
    """Goals of the servos, (6,) in encoder steps."""
    robot.bus.ping("gripper")  # commands have no reply; that to a ping comes after them
    return np.array([servo.get("Goal_Position") for servo in virtual_arm.follower.bus.servos])


def degrees(robot, steps) -> np.ndarray:
    """Encoder steps (6,) in degrees and percent, by the robot's calibration."""
    found = [robot.calibration[joint] for joint in JOINTS]
    middles = np.array([(joint.range_min + joint.range_max) / 2 for joint in found])
    made = (steps - middles) * 360 / 4095
    made[5] = 100 * (steps[5] - found[5].range_min) / (found[5].range_max - found[5].range_min)
    return made


def command(**changes) -> dict:
    return {f"{joint}.pos": value for joint, value in {**HOME, **changes}.items()}


def test_connecting_moves_nothing(virtual_arm, connect):
    before = virtual_arm.world.joints()
    for servo in virtual_arm.follower.bus.servos:
        servo.set("Goal_Position", 1000)
    robot, _ = connect()
    virtual_arm.advance(0.5)
    assert np.abs(virtual_arm.world.joints() - before).max() < 3
    np.testing.assert_allclose(degrees(robot, goals(robot, virtual_arm)), before, atol=1)


def test_adversarial_commands_reach_the_servos_within_all_limits(virtual_arm, connect):
    limits = GuardLimits(velocity=90, acceleration=900, gripper_velocity=200, table=0.02)
    robot, clock = connect(limits=limits)
    rng = np.random.default_rng(0)
    limits, last, step = robot.limits, degrees(robot, goals(robot, virtual_arm)), 0.09  # of an encoder
    for number in range(200):
        clock.now += TICK
        match number % 5:
            case 0:
                asked = dict.fromkeys(JOINTS, math.nan)
            case 1:
                asked = {joint: 1e9 * rng.normal() for joint in JOINTS}
            case 2:
                asked = {"shoulder_lift": 100, "elbow_flex": -30}
            case 3:
                asked = dict(zip(JOINTS, rng.uniform(-180, 180, 6), strict=True))
            case _:
                asked = {"gripper": None, "wrist_roll": "left"}
        robot.send_action(command(**asked))
        virtual_arm.advance(TICK)
        new = degrees(robot, goals(robot, virtual_arm))
        assert (new >= np.array(limits.lower) - step).all()
        assert (new <= np.array(limits.upper) + step).all()
        assert (np.abs(new - last) <= limits.velocities * TICK + 2 * step).all()
        assert reach(new[None])[1][0] > 0.02 - 0.002
        last = new
    assert set(robot.guard.counts) >= {"hold", "clamp", "velocity", "joint range", "no six finite positions"}


def test_the_stock_follower_sends_what_the_guard_limits(virtual_arm):
    robot = SO101Follower(SO101FollowerConfig(port=str(virtual_arm.follower.bus.port), id="virtual"))
    robot.connect()
    before = degrees(robot, goals(robot, virtual_arm))
    robot.send_action(command(shoulder_pan=before[0] + 60))
    assert degrees(robot, goals(robot, virtual_arm))[0] - before[0] > 50
    robot.disconnect()


@pytest.mark.parametrize(
    "action",
    [
        {"shoulder_pan.pos": 3.0},
        command(elbow_flex=np.zeros(2)),
        command(elbow_flex=torch.zeros(2)),
        command(elbow_flex=10**400),
        command(elbow_flex=1j),
    ],
)
def test_a_command_without_six_numbers_holds(virtual_arm, connect, action):
    robot, clock = connect()
    before = goals(robot, virtual_arm)
    clock.now += TICK
    robot.send_action(action)
    assert np.abs(goals(robot, virtual_arm) - before).max() <= 1
    assert robot.guard.counts["no six finite positions"] == 1


def test_degrees_and_percent_give_the_same_goals(virtual_arm, connect):
    robot, clock = connect()
    clock.now += TICK
    robot.send_action(command(shoulder_pan=2.0))
    expected = goals(robot, virtual_arm)
    robot.disconnect()
    virtual_arm.advance(0.1)
    robot, clock = connect(use_degrees=False)
    percents = {
        joint: value / robot._half_range(joint) * 100 if joint != "gripper" else value
        for joint, value in {**HOME, "shoulder_pan": 2.0}.items()
    }
    for _ in range(30):
        clock.now += TICK
        robot.send_action(command(**percents))
    assert np.abs(goals(robot, virtual_arm) - expected)[0] <= 2


@pytest.mark.parametrize("use_degrees", [True, False])
def test_limits_stay_within_the_calibration(virtual_arm, connect, use_degrees):
    robot, _ = connect(use_degrees=use_degrees, margin=2.0)
    elbow = robot.calibration["elbow_flex"]
    half = (elbow.range_max - elbow.range_min) / 2 * 360 / 4095
    assert robot.limits.upper[2] == pytest.approx(min(97, half - 2))
    assert robot.limits.upper[5] == 100


def test_a_silent_servo_is_named(virtual_arm, connect):
    robot, _ = connect(num_read_retries=0)
    robot.get_observation()
    limit_waiting(robot, 0.3)
    virtual_arm.follower.faults.silence("elbow_flex")
    with pytest.raises(ConnectionError, match=r"no reply from elbow_flex \(id 3\)"):
        robot.get_observation()
    virtual_arm.follower.faults.clear()


def test_a_servo_with_an_error_status_is_not_reported_as_silent(virtual_arm, connect):
    robot, _ = connect()
    limit_waiting(robot, 0.3)
    gripper = virtual_arm.follower.bus.servo("gripper")
    gripper.temperature = 90
    virtual_arm.advance(0.05)
    assert gripper.get("Status") == 4
    assert robot.bus.ping("gripper") == 777
    virtual_arm.follower.faults.silence("elbow_flex")
    with pytest.raises(ConnectionError, match=r"no reply from elbow_flex \(id 3\)\. "):
        robot.get_observation()
    virtual_arm.follower.faults.clear()
    robot.bus.disconnect(disable_torque=False)
    *others, last = doctor.servos(doctor.DoctorConfig(port=str(virtual_arm.follower.bus.port)))
    assert not any(finding.fix for finding in others)
    assert last.found.startswith("gripper (id 6): ")
    assert last.found.endswith(", reports: too hot")
    assert last.fix


def limit_waiting(robot, seconds):
    """Limit how long the driver waits for replies from now on."""
    port = robot.bus.port_handler
    port.setPacketTimeout = lambda _: port.setPacketTimeoutMillis(1000 * seconds)


def test_lost_torque_is_named(virtual_arm, connect):
    robot, _ = connect(torque_check_s=0)
    robot.get_observation()
    virtual_arm.follower.bus.brown_out(0.05)
    virtual_arm.advance(0.1)
    with pytest.raises(ConnectionError, match=r"shoulder_pan, .* lost torque \(brown-out or overload\)"):
        robot.get_observation()


def test_an_unplugged_cable_raises_one_line_and_disconnects(virtual_arm, connect, caplog):
    robot, _ = connect(num_read_retries=0)
    limit_waiting(robot, 0.3)
    virtual_arm.follower.bus.unplug()
    with pytest.raises(ConnectionError, match=r"so101_guarded: .*(is gone|no reply from)"):
        robot.get_observation()
    robot.disconnect()
    assert not robot.is_connected


def test_replies_that_are_lost_now_and_then_are_no_fault(virtual_arm, connect):
    robot, _ = connect(torque_check_s=0)
    limit_waiting(robot, 0.3)
    virtual_arm.follower.faults.rate("lost", 0.03)
    for _ in range(20):
        robot.get_observation()
    virtual_arm.follower.faults.clear()


def test_a_late_reply_is_not_taken_for_the_next_one(virtual_arm, connect, monkeypatch):
    robot, _ = connect(torque_check_s=0)
    limit_waiting(robot, 0.2)
    monkeypatch.setattr(virtual_bus, "_LATE", 0.3)
    monkeypatch.setattr(retrying_bus, "_LATE_REPLY_S", 0.3)
    before = robot.get_observation()
    for late in (1, 2, 1):  # while positions are read; while torque is read
        virtual_arm.follower.faults.next("late", late)
        for _ in range(2):
            assert robot.get_observation() == pytest.approx(before, abs=0.5)


def test_a_silent_servo_does_not_prevent_the_others_from_losing_torque(virtual_arm, connect, caplog):
    robot, _ = connect(num_read_retries=0)
    limit_waiting(robot, 0.3)
    servos = virtual_arm.follower.bus.servos
    servos[2].power_off()
    robot.disconnect()
    assert [servo.get("Torque_Enable") for servo in servos if servo.powered] == [0] * 5
    assert "elbow_flex" in caplog.text


def test_an_overloaded_servo_is_named_and_loses_torque(virtual_arm, connect, caplog):
    robot, clock = connect(torque_check_s=0)
    virtual_arm.follower.faults.jam("elbow_flex")
    for _ in range(120):
        clock.now += TICK
        robot.guard.observe()
        robot.send_action(command(elbow_flex=60))
        virtual_arm.advance(TICK)
    robot.get_observation()
    assert "elbow_flex reports: overloaded" in caplog.text
    robot.disconnect()
    assert not any(servo.get("Torque_Enable") for servo in virtual_arm.follower.bus.servos)


class Camera:
    """A camera that is connected or not, and fails to disconnect."""

    def __init__(self, is_connected: bool = True) -> None:
        self.is_connected, self.released = is_connected, False

    def disconnect(self):
        self.released = True
        raise OSError("stuck")


def test_a_camera_that_is_gone_or_fails_does_not_keep_torque_on(virtual_arm, connect, caplog):
    robot, _ = connect()
    robot.cameras = {"top": Camera(is_connected=False), "wrist": Camera(), "front": Camera()}
    assert robot.is_connected  # LeRobot's commands disconnect nothing else
    robot.disconnect()
    assert not any(servo.get("Torque_Enable") for servo in virtual_arm.follower.bus.servos)
    assert not robot.is_connected
    assert [camera.released for camera in robot.cameras.values()] == [False, True, True]
    assert "camera front: stuck" in caplog.text


def test_limits_without_range_are_refused_before_anything_is_written(virtual_arm):
    limits = GuardLimits(lower=(109.5, -100, -97, -95, -160, 0))
    port, servos = str(virtual_arm.follower.bus.port), virtual_arm.follower.bus.servos
    robot = make_robot_from_config(SO101GuardedConfig(port=port, id="virtual", limits=limits))
    for servo in servos:
        servo.set("Goal_Position", 1000)
    with pytest.raises(ValueError, match=r"limits: shoulder_pan .* leaves no range"):
        robot.connect()
    assert [(servo.get("Torque_Enable"), servo.get("Goal_Position")) for servo in servos] == [(0, 1000)] * 6
    robot.disconnect()


def test_nothing_changes_a_goal_after_the_guard():
    with pytest.raises(ValueError, match=r"max_relative_target: found 8.0.*`--robot.limits.velocity`"):
        make_robot_from_config(SO101GuardedConfig(port="none", max_relative_target=8.0))


def test_an_arm_without_calibration_can_be_calibrated(virtual_arm):
    robot = make_robot_from_config(SO101GuardedConfig(port=str(virtual_arm.follower.bus.port), id="new"))
    robot.connect(calibrate=False)
    with pytest.raises(ConnectionError, match="not connected"):
        robot.send_action(command())
    robot.disconnect()


def test_a_policy_of_another_arm_is_refused_before_anything_moves(virtual_arm, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr("sys.argv", ["lerobot-rollout", f"--policy.path={tmp_path}"])
    monkeypatch.setattr(so101_guarded, "check_calibration", lambda *found: checked.append(found) or 1 / 0)
    config = SO101GuardedConfig(port=str(virtual_arm.follower.bus.port), id="virtual", use_degrees=False)
    robot = make_robot_from_config(config)
    with pytest.raises(ZeroDivisionError):
        robot.connect()
    assert not robot.is_connected
    assert checked == [(tmp_path, robot.calibration, False, False)]


def test_a_port_has_one_owner(virtual_arm, connect, own_elsewhere):
    robot, _ = connect()
    port = str(virtual_arm.follower.bus.port)
    second = make_robot_from_config(SO101GuardedConfig(port=port, id="virtual"))
    with pytest.raises(ConnectionError, match=rf"port: .* in use by process {os.getpid()}"):
        second.connect()
    finding = next(iter(doctor.servos(doctor.DoctorConfig(port=port))))
    assert f"in use by process {os.getpid()}" in finding.fix + finding.found
    robot.disconnect()
    other = own_elsewhere(port)
    with pytest.raises(ConnectionError, match=rf"port: .* in use by process {other.pid}"):
        second.connect()
    other.kill()
    other.join()
    second.connect()
    second.disconnect()


def close_gripper_on_an_object(virtual_arm, robot, clock):
    """Let the gripper be overloaded."""
    virtual_arm.follower.faults.jam("gripper")
    for _ in range(120):
        clock.now += TICK
        robot.send_action(command(gripper=0))
        virtual_arm.advance(TICK)
    assert virtual_arm.follower.bus.servo("gripper").get("Status") == 32


def test_an_arm_with_an_overloaded_gripper_can_be_connected_again(virtual_arm, connect, monkeypatch, caplog):
    robot, clock = connect()
    close_gripper_on_an_object(virtual_arm, robot, clock)
    robot.bus.close()  # as after kill -9: torque stays on
    assert virtual_arm.follower.bus.servo("gripper").get("Torque_Enable") == 1
    monkeypatch.setattr(retrying_bus.time, "sleep", virtual_arm.advance)
    virtual_arm.follower.faults.clear()
    again, _ = connect()
    assert "gripper reports: overloaded. Torque of these servos is disabled" in caplog.text
    again.get_observation()
    assert all(servo.get("Torque_Enable") for servo in virtual_arm.follower.bus.servos)


def test_an_error_that_does_not_end_names_the_servo(virtual_arm, monkeypatch):
    virtual_arm.follower.bus.servo("elbow_flex").temperature = 90
    virtual_arm.advance(0.05)
    monkeypatch.setattr(retrying_bus, "_CLEAR_S", 0.05)
    port = str(virtual_arm.follower.bus.port)
    robot = make_robot_from_config(SO101GuardedConfig(port=port, id="virtual"))
    with pytest.raises(RuntimeError, match=r"elbow_flex reports: too hot, also without torque. Check"):
        robot.connect()
    robot.disconnect()


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "", "a\\b"])
def test_a_name_that_leaves_the_calibration_folder_is_refused(name):
    with pytest.raises(ValueError, match=r"--robot.id: found .* expected a name without '/'"):
        make_robot_from_config(SO101GuardedConfig(port="none", id=name))
    with pytest.raises(ValueError, match=r"--id: found .* expected a name without '/'"):
        VirtualArmConfig(id=name).check()
