# SPDX-License-Identifier: Apache-2.0
"""LeRobot's own follower and leader drivers on two emulated arms, one of them with physics."""

import builtins
import io
import json
import sys
import threading
import time
import types

import numpy as np
import pytest
from lerobot.datasets import LeRobotDataset
from lerobot.motors import motors_bus
from lerobot.motors.feetech import feetech
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig

from lerobot_env_so101_workbench.sim.servos import ENCODER_STEP
from lerobot_env_so101_workbench.virtual_arm import (
    calibration as virtual_calibration,
    console as virtual_arm_console,
    joints as virtual_joints,
)
from lerobot_env_so101_workbench.virtual_arm.arm import VirtualArm, VirtualArmConfig
from lerobot_env_so101_workbench.virtual_arm.console import Console, describe
from lerobot_env_so101_workbench.virtual_arm.leader import read_actions
from lerobot_processor_so101.arm import ACTION_NAMES, HOME, JOINTS, LOWER, UPPER
from tests.slow_machine import set_timeout

STEP = np.array([360 / 4096] * 5 + [100 / ((UPPER[5] - LOWER[5]) / ENCODER_STEP)])  # one encoder step


@pytest.fixture(autouse=True)
def driver_timeout(monkeypatch):
    """Wait for 2 s: the driver's 50 ms are short on a busy machine."""
    monkeypatch.setattr(feetech, "patch_setPacketTimeout", set_timeout)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Calibration files of this test and nothing else."""
    from lerobot.robots import robot
    from lerobot.teleoperators import teleoperator

    for module in (robot, teleoperator, virtual_calibration):
        monkeypatch.setattr(module, "HF_LEROBOT_CALIBRATION", tmp_path / "calibration")
    return tmp_path


@pytest.fixture
def options(folder):
    """`options(...)`: a configuration whose ports and files are this test's."""
    ports = {"follower_port": folder / "follower", "leader_port": folder / "leader"}
    return lambda **kwargs: VirtualArmConfig(**{**ports, "leader": "none", **kwargs})


@pytest.fixture
def plugged(options):
    """`plugged(...)`: a virtual arm whose time passes in `advance` only."""
    arms = []

    def plug(**kwargs):
        arms.append(VirtualArm(options(**kwargs)))
        arms[-1].plug_in()
        return arms[-1]

    yield plug
    for virtual_arm in arms:
        virtual_arm.close()


@pytest.fixture
def follower_of():
    """`follower_of(virtual_arm)`: LeRobot's follower on its port, connected."""
    robots = []

    def connect(virtual_arm, **kwargs):
        robot = SO101Follower(SO101FollowerConfig(port=virtual_arm.follower.bus.port, id="virtual", **kwargs))
        robots.append(robot)
        robot.connect()
        return robot

    yield connect
    for robot in robots:
        if robot.is_connected:
            robot.bus.port_handler.closePort()


def observed(device) -> np.ndarray:
    read = device.get_observation if isinstance(device, SO101Follower) else device.get_action
    return np.array([read()[name] for name in ACTION_NAMES])


def send(robot, joints) -> None:
    """Send goals, and wait until the servos have them: goals get no response."""
    robot.send_action(dict(zip(ACTION_NAMES, map(float, joints), strict=True)))
    robot.get_observation()


# -- the follower ----------------------------------------------------------------------------------


def test_a_ready_arm_needs_no_calibration_and_reads_the_worlds_joints(plugged, follower_of):
    virtual_arm = plugged()
    robot = follower_of(virtual_arm)  # would ask for ENTER if it were not calibrated
    assert robot.is_calibrated
    assert np.abs(observed(robot) - virtual_arm.world.joints()).max() < 0.2
    other = SO101Follower(SO101FollowerConfig(port="none", id="virtual", use_degrees=False))
    assert other.calibration == robot.calibration


def test_the_arm_reaches_its_goals(plugged, follower_of):
    virtual_arm = plugged()
    robot = follower_of(virtual_arm)
    for goal in (HOME + [40, 10, -10, -20, 30, 40], HOME + [-40, 0, 0, 0, 0, -45]):
        send(robot, goal)
        virtual_arm.advance(1.5)
        assert np.abs(virtual_arm.world.joints() - goal).max() < 0.7  # half the play, rounding, gravity
        assert np.abs(observed(robot) - virtual_arm.world.joints()).max() < 0.2


def test_the_arm_turns_as_fast_as_the_data_sheet_says(plugged, follower_of):
    virtual_arm = plugged()
    robot = follower_of(virtual_arm)
    send(robot, HOME + [-80, 0, 0, 0, 0, 0])
    virtual_arm.advance(1.5)
    send(robot, HOME + [80, 0, 0, 0, 0, 0])
    virtual_arm.advance(0.25)  # up to speed
    begin = virtual_arm.world.joints()[0]
    velocity = virtual_arm.follower.bus.servo("shoulder_pan").get("Present_Velocity")
    virtual_arm.advance(0.2)
    assert (virtual_arm.world.joints()[0] - begin) / 0.2 == pytest.approx(60 / 0.222, rel=0.05)
    assert velocity == pytest.approx(4096 / 6 / 0.222, rel=0.05)


def test_a_hand_holds_the_arm_until_its_servos_do_and_without_torque_it_falls(plugged, follower_of):
    virtual_arm = plugged()
    begin = virtual_arm.world.joints()
    virtual_arm.advance(0.5)
    np.testing.assert_array_equal(virtual_arm.world.joints(), begin)
    robot = follower_of(virtual_arm)
    virtual_arm.advance(0.5)
    assert np.abs(virtual_arm.world.joints() - begin).max() < 0.5
    robot.disconnect()
    virtual_arm.advance(1.0)
    assert np.abs(virtual_arm.world.joints() - begin).max() > 20
    assert virtual_arm.world.is_finite()


def test_a_brown_out_drops_the_arm(plugged, follower_of):
    virtual_arm = plugged()
    robot = follower_of(virtual_arm)
    virtual_arm.advance(0.2)
    before = observed(robot)
    virtual_arm.follower.bus.brown_out(0.1)
    virtual_arm.advance(1.0)
    assert np.abs(observed(robot) - before).max() > 20


def test_a_jammed_joint_stays_while_the_others_move_until_it_is_overloaded(plugged, follower_of):
    virtual_arm = plugged()
    robot = follower_of(virtual_arm)
    virtual_arm.advance(0.2)
    begin = observed(robot)
    virtual_arm.follower.faults.jam("shoulder_pan")
    send(robot, begin + [30, 0, 0, 0, 30, 0])
    virtual_arm.advance(1.0)
    assert np.abs(observed(robot) - begin)[[0, 4]] == pytest.approx([0, 30], abs=1.0)
    load, status = robot.bus.read("Present_Load", "shoulder_pan"), "Status"
    assert load > 900
    virtual_arm.advance(1.2)
    with pytest.raises(RuntimeError, match=r"id_=1.*Overload error"):
        robot.bus.read(status, "shoulder_pan")
    assert virtual_arm.follower.bus.servo("shoulder_pan").get("Present_Load") == 200
    virtual_arm.follower.faults.clear()
    virtual_arm.advance(2.0)
    assert observed(robot)[0] == pytest.approx(begin[0] + 30, abs=1.0)  # a fifth of the torque is enough


def test_the_gripper_pushes_with_half_the_torque(plugged, follower_of):
    virtual_arm = plugged()
    robot = follower_of(virtual_arm)
    virtual_arm.follower.faults.jam("gripper")
    send(robot, HOME + [0, 0, 0, 0, 0, -50])
    virtual_arm.advance(0.5)
    assert robot.bus.read("Present_Load", "gripper") == -500


# -- the leader ------------------------------------------------------------------------------------


def leader_of(virtual_arm):
    leader = SO101Leader(SO101LeaderConfig(port=virtual_arm.leader.bus.port, id="virtual"))
    leader.connect()
    return leader


def test_teleoperation_by_the_expert_succeeds_and_resets_the_scene(plugged, follower_of):
    virtual_arm = plugged(leader="expert", seed=1)
    robot, leader = follower_of(virtual_arm), leader_of(virtual_arm)
    state, successes = virtual_arm.world.initial_state, 0
    for _ in range(300):
        robot.send_action(leader.get_action())
        virtual_arm.advance(1 / 30)
        successes += virtual_arm.world.is_success()
        if virtual_arm.world.initial_state is not state:
            break
    assert successes > 0
    assert virtual_arm.world.initial_state is not state
    assert virtual_arm.world.ticks == 0


def test_a_leader_with_torque_follows_commands(plugged):
    virtual_arm = plugged(leader="still")
    leader = leader_of(virtual_arm)
    begin = observed(leader)
    virtual_arm.advance(0.3)
    np.testing.assert_allclose(observed(leader), begin)
    leader.enable_torque()
    leader.send_feedback(dict(zip(ACTION_NAMES, map(float, begin + [10, 0, 0, 0, 0, 0]), strict=True)))
    leader.get_action()
    virtual_arm.advance(1.0)
    np.testing.assert_allclose(observed(leader), begin + [10, 0, 0, 0, 0, 0], atol=0.2)
    leader.disconnect()


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Two episodes of 10 frames at 15 Hz: the pan joint goes up by a degree per frame, from 0 and from 20."""
    root = tmp_path_factory.mktemp("recording") / "set"
    feature = {"dtype": "float32", "shape": (6,), "names": list(ACTION_NAMES)}
    dataset = LeRobotDataset.create(
        "local/set", 15, {"action": feature, "observation.state": feature}, root=root
    )
    for begin in (0, 20):
        for i in range(10):
            pose = (HOME + [begin + i, 0, 0, 0, 0, 0]).astype(np.float32)
            dataset.add_frame({"action": pose, "observation.state": pose, "task": "turn"})
        dataset.save_episode()
    dataset.finalize()
    return root


def test_a_leader_plays_a_recording_at_its_own_speed(plugged, recording):
    virtual_arm = plugged(leader="recording", recording=recording, episode=1)
    leader = leader_of(virtual_arm)
    virtual_arm.advance(2.0)  # to the beginning, and at least once through
    pans = []
    for _ in range(90):
        virtual_arm.advance(1 / 30)
        pans.append(observed(leader)[0])
    assert min(pans) == pytest.approx(20, abs=0.2)
    assert max(pans) == pytest.approx(29, abs=0.2)
    assert np.diff(pans).max() == pytest.approx(
        1.0, abs=0.2
    )  # 15 Hz played at 30 Hz: a step every other tick
    leader.disconnect()


def test_a_leader_that_was_held_returns_to_its_recording(plugged, recording):
    virtual_arm = plugged(leader="recording", recording=recording)
    side = virtual_arm.leader
    for _ in range(2):
        side.hold_middle()
        virtual_arm.advance(1.5)
        assert np.abs(np.degrees(side.joints.radians[:5])).max() < 0.1
        side.let_go()
        virtual_arm.advance(1.5)
        assert np.degrees(side.joints.radians)[1] == pytest.approx(HOME[1], abs=0.1)


def test_a_recording_that_cannot_be_played_is_refused(options, recording, tmp_path):
    assert read_actions(recording, 0).shape == (20, 6)
    with pytest.raises(ValueError, match="--episode: found 2, expected 0 to 1"):
        VirtualArm(options(leader="recording", recording=recording, episode=2))
    with pytest.raises(FileNotFoundError, match="--recording: found no LeRobotDataset in"):
        VirtualArm(options(leader="recording", recording=tmp_path / "nothing"))
    with pytest.raises(ValueError, match="--leader=recording needs the folder"):
        VirtualArm(options(leader="recording"))


# -- setting up and calibrating by hand ------------------------------------------------------------


def test_new_servos_are_set_up_one_after_the_other(plugged, monkeypatch):
    virtual_arm = plugged(servos="new")
    console, asked = Console(virtual_arm), []

    def connect_it(prompt):
        asked.append(prompt.split("'")[1])
        console.do(f"attach {asked[-1]}")

    monkeypatch.setattr(builtins, "input", connect_it)
    robot = SO101Follower(SO101FollowerConfig(port=virtual_arm.follower.bus.port, id="virtual"))
    robot.setup_motors()
    assert asked == list(reversed(JOINTS))
    console.do("attach all")
    assert [servo.id for servo in virtual_arm.follower.bus.servos] == [1, 2, 3, 4, 5, 6]
    assert robot.bus.broadcast_ping() == dict.fromkeys(range(1, 7), 777)
    robot.bus.port_handler.closePort()


def test_calibration_by_hand_finds_the_values_of_the_file(plugged, folder, monkeypatch):
    monkeypatch.setattr(virtual_joints, "_HAND_SPEED", np.radians(720.0))  # a hurried hand
    virtual_arm = plugged(servos="assembled", leader="still")
    console = Console(virtual_arm)
    robot = SO101Follower(SO101FollowerConfig(port=virtual_arm.follower.bus.port, id="by_hand"))
    leader = SO101Leader(SO101LeaderConfig(port=virtual_arm.leader.bus.port, id="by_hand"))
    for device, side in ((robot, "follower"), (leader, "leader")):
        rounds = []

        def bring_to_the_middle(prompt, side=side):
            console.do(f"{side} middle")
            virtual_arm.advance(1.5)

        def move(side=side, rounds=rounds):
            if not rounds:
                console.do(f"{side} ranges")
            rounds.append(virtual_arm.advance(0.1))
            return len(rounds) > 90

        monkeypatch.setattr(builtins, "input", bring_to_the_middle)
        monkeypatch.setattr(motors_bus, "enter_pressed", move)
        monkeypatch.setattr(motors_bus, "time", types.SimpleNamespace(sleep=lambda seconds: None))
        device.connect(calibrate=False)
        assert not device.is_calibrated
        device.calibrate()
        assert device.is_calibrated
    for device, side in ((robot, virtual_arm.follower), (leader, virtual_arm.leader)):
        expected = virtual_calibration.calibration_of(side.bus.servos)
        for joint, found in device.calibration.items():
            numbers = [vars(found)[n] - vars(expected[joint])[n] for n in vars(found)]
            assert np.abs(numbers).max() <= 1, joint
    console.do("release")
    robot.disconnect()
    leader.disconnect()


def test_a_calibration_of_another_arm_is_left_alone(options, folder):
    path = virtual_calibration.calibration_file(virtual_calibration.FOLLOWER, "virtual")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"mine": 1}))
    virtual_arm = VirtualArm(options())
    with pytest.raises(FileExistsError, match="choose another id"):
        virtual_arm.plug_in()
    assert json.loads(path.read_text()) == {"mine": 1}
    assert not virtual_arm.follower.bus.is_plugged_in


# -- real time, and the command --------------------------------------------------------------------


def test_in_real_time_the_arm_follows_and_all_threads_end(options, follower_of):
    with VirtualArm(options(leader="still")) as virtual_arm:
        robot = follower_of(virtual_arm)
        goal = HOME + [30, 0, 0, 0, 0, 0]
        robot.send_action(dict(zip(ACTION_NAMES, map(float, goal), strict=True)))
        deadline = time.monotonic() + 20
        while abs(observed(robot)[0] - 30) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert observed(robot)[0] == pytest.approx(30, abs=1)
        robot.disconnect()
    virtual_arm.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("virtual-")]


def test_a_simulation_that_fails_closes_the_ports(options, monkeypatch, caplog):
    monkeypatch.setattr(VirtualArm, "_step", lambda self: 1 / 0)
    with VirtualArm(options()) as virtual_arm:
        virtual_arm._thread.join(10)
        assert not virtual_arm.follower.bus.is_plugged_in
    assert "the simulation failed" in caplog.text


def test_the_console_executes_commands(plugged):
    virtual_arm = plugged(leader="still")
    console = Console(virtual_arm)
    follower, leader = virtual_arm.follower, virtual_arm.leader
    assert console.do("attach gripper elbow_flex") == "On the cable: gripper, elbow_flex."
    assert [servo.name for servo in follower.bus.servos if servo.powered] == ["elbow_flex", "gripper"]
    assert "gripper" in console.do("status")
    assert "shoulder_pan" not in console.do("status")
    assert console.do("leader jam gripper") == console.do("silence elbow_flex") == "ok"
    assert (leader.faults.jammed, follower.faults.silent) == ({"gripper"}, {"elbow_flex"})
    assert console.do("leader well") == console.do("fault lost 3") == console.do("rate lost 0.5") == "ok"
    assert not leader.faults.jammed
    assert console.do("pull") == "ok"
    assert not follower.bus.is_plugged_in
    assert console.do("plug") == console.do("brownout") == "ok"
    assert follower.bus.is_plugged_in
    assert console.do("") == ""
    with pytest.raises(EOFError):
        console.do("quit")


@pytest.mark.parametrize(
    ("line", "output"),
    [
        ("dance", "Found 'dance', expected a command"),
        ("jam knee", "found 'knee', expected one of shoulder_pan"),
        ("fault rust", "found 'rust', expected one of"),
        ("rate lost", "rate: found arguments lost, expected others"),
        ("rate lost often", "found 'often', expected a number"),
        ("leader status", "There is no leader"),
    ],
)
def test_the_console_explains_what_it_cannot_execute(plugged, line, output):
    assert output in Console(plugged()).do(line)


def test_the_command_prints_lerobots_commands_and_ends(command_loggers, folder, monkeypatch, capsys):
    ports = [f"--follower_port={folder / 'f'}", f"--leader_port={folder / 'l'}"]
    monkeypatch.setattr(sys, "argv", ["so101-virtual-arm", *ports])
    monkeypatch.setattr(sys, "stdin", io.StringIO("status\nquit\n"))
    virtual_arm_console.main()
    printed = capsys.readouterr().out
    assert f"--robot.port={folder / 'f'} --robot.id=virtual" in printed
    assert f"--teleop.port={folder / 'l'}" in printed
    assert "wrist_roll" in printed
    assert not (folder / "f").is_symlink()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--task=dance", "--task: found task 'dance'"),
        ("--leader=cat", "--leader: found 'cat', expected one of expert, recording, still, none"),
        ("--servos=old", "--servos: found 'old', expected one of ready, assembled, new"),
    ],
)
def test_the_command_refuses_invalid_options_in_one_line(
    command_loggers, monkeypatch, capsys, option, message
):
    monkeypatch.setattr(sys, "argv", ["so101-virtual-arm", option])
    with pytest.raises(SystemExit) as ended:
        virtual_arm_console.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_printed_commands_depend_on_the_servos(options):
    for servos, command in (("new", "lerobot-setup-motors"), ("assembled", "lerobot-calibrate")):
        fake = types.SimpleNamespace(config=options(servos=servos), leader=None)
        assert f"{command} --robot.type=so101_follower" in describe(fake)
