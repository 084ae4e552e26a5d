# SPDX-License-Identifier: Apache-2.0
"""Corrections by a person: `lerobot-rollout --strategy.type=dagger` on the guarded arm with a leader.

LeRobot's own commands run on two emulated arms whose time passes only where LeRobot waits. A script plays the
person: it moves the leader and types keys on a pseudo-terminal. A witness records the true joints after every
physics step, and every command with who sent it.
"""

import importlib
import math
import os
import pty
import sys
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot.common import control_utils
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets import LeRobotDataset
from lerobot.policies import make_pre_post_processors
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.rollout.strategies import core, dagger
from lerobot.scripts import lerobot_record
from lerobot.teleoperators import teleoperator
from lerobot.teleoperators.so_leader import SO101Leader
from lerobot.utils import keyboard_input

from lerobot_env_so101_workbench.virtual_arm import calibration as virtual_calibration, frame_file
from lerobot_env_so101_workbench.virtual_arm.arm import VirtualArm, VirtualArmConfig
from lerobot_env_so101_workbench.virtual_arm.joints import STEP, hold
from lerobot_processor_so101.arm import ACTION_NAMES, GRIPPER, HOME, from_radians, to_radians
from lerobot_processor_so101.guard import Guard
from lerobot_robot_so101 import so101_guarded

LIMIT, TOLERANCE = 60.0, 1.2  # deg/s; measured over 0.1 s, see test_motion.py
FPS, SIZE = 30, (24, 32)
PAN = 0
KEYS = {"space": b" ", "tab": b"\t", "esc": b"\x1b"}
ACT = {"dim_model": 16, "n_heads": 2, "dim_feedforward": 16, "n_encoder_layers": 1, "chunk_size": 5}


def pan(degrees):
    """A pose (6,) that is home, turned."""
    return HOME + [degrees, 0, 0, 0, 0, 0]


def vector(command):
    return np.array([command[name] for name in ACTION_NAMES])


@dataclass
class Command:
    """A command to the follower, in deg and percent.

    Attributes:
        sender: policy, person, or LeRobot while it holds the arm or brings it home.
        requested, sent, measured: before the guard, after it, and the true joints, (6,).
        at: number of physics steps so far.
    """

    sender: str
    requested: np.ndarray
    sent: np.ndarray
    measured: np.ndarray
    at: int


class Session:
    """Two emulated arms, the person between them, and the witness.

    Attributes:
        arm: the emulated arms.
        now: their time [s].
        joints: true positions of the follower after every physics step, each (6,).
        commands: to the follower.
        sender: of the next command.
        terminal: on which keys are typed; `heard` is set when LeRobot has read one.
    """

    def __init__(self, folder):
        ports = {"follower_port": folder / "follower", "leader_port": folder / "leader"}
        size = {"height": SIZE[0], "width": SIZE[1]}
        self.arm = VirtualArm(VirtualArmConfig(**ports, **size, leader="still", cameras=["top"]))
        self.now, self.joints, self.commands = 0.0, [], []
        self.sender = "LeRobot"
        self._person, self._due = iter(()), math.inf
        self.terminal, self.heard = None, threading.Event()

    def wait(self, seconds):
        """Let time pass; the person acts when its next action is due."""
        for _ in range(max(1, round(seconds / STEP))):
            self.arm.advance(STEP)
            self.now += STEP
            self.joints.append(from_radians(self.arm.follower.joints.radians))
            while self.now >= self._due:
                self._due += next(self._person, math.inf)

    def begin(self, person):
        """Begin with the actions of a person: a generator of the seconds between them."""
        self._person, self._due = person, self.now

    def press(self, key):
        """Type a key, and wait until LeRobot has read it."""
        self.heard.clear()
        os.write(self.terminal, KEYS[key])
        assert self.heard.wait(60), key

    def leader(self):
        """Return the pose of the leader, (6,)."""
        return from_radians(self.arm.leader.joints.radians)

    def take(self):
        """Hold the leader where it is."""
        self.arm.leader.joints.hand = hold(self.arm.leader.joints.radians.copy())

    def move(self, pose, seconds):
        """Move the leader by hand to a pose (6,)."""
        begin, end = self.arm.leader.joints.radians.copy(), to_radians(pose)
        steps = round(seconds / STEP)

        def hand():
            for step in range(1, steps + 1):
                yield begin + (end - begin) * (step / steps)
            yield from hold(end)

        self.arm.leader.joints.hand = hand()

    def speed(self, window=0.1):
        """Return the highest speed of each joint over windows of so many seconds, (6,) [1/s]."""
        path, steps = np.array(self.joints), round(window / STEP)
        return np.abs(path[steps:] - path[:-steps]).max(0) / (steps * STEP)

    def handovers(self):
        """Return the last command before each change of sender, and the first after it."""
        pairs = zip(self.commands, self.commands[1:], strict=False)
        return [(before, after) for before, after in pairs if before.sender != after.sender]


@pytest.fixture
def session(tmp_path, monkeypatch, slow_machine):
    """The arms, at LeRobot's own commands."""
    from lerobot.robots import robot

    for module in (robot, teleoperator, virtual_calibration):
        monkeypatch.setattr(module, "HF_LEROBOT_CALIBRATION", tmp_path / "calibration")
    session = Session(tmp_path)
    # 1. time passes where LeRobot waits
    clock = lambda: session.now  # noqa: E731
    monkeypatch.setattr(frame_file, "now", clock)
    time = SimpleNamespace(perf_counter=clock, monotonic=clock, sleep=session.wait)
    for module in (lerobot_record, dagger, core, control_utils, so101_guarded):
        monkeypatch.setattr(module, "time", time)
        if hasattr(module, "precise_sleep"):
            monkeypatch.setattr(module, "precise_sleep", session.wait)
    monkeypatch.setattr(so101_guarded, "Guard", lambda limits: Guard(limits, clock))
    # 2. a terminal without a display
    session.terminal, slave = pty.openpty()
    monkeypatch.setattr(keyboard_input, "pynput_can_capture", lambda: False)
    create = keyboard_input.create_key_listener
    monkeypatch.setattr(
        dagger,
        "create_key_listener",
        lambda dispatch, **kwargs: create(lambda name: (dispatch(name), session.heard.set()), **kwargs),
    )
    # 3. the witness
    watch(session, monkeypatch)
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        session.arm.plug_in()
        session.wait(0.1)
        yield session
        session.arm.close()
    os.close(session.terminal)


def watch(session, monkeypatch):
    """Record the commands to the follower and their senders."""
    robot = so101_guarded.SO101Guarded
    originals = robot.send_action, SO101Leader.get_action, SO101Leader.send_feedback

    def send_action(self, action):
        measured = from_radians(session.arm.follower.joints.radians)
        sent = originals[0](self, action)
        command = Command(session.sender, vector(action), vector(sent), measured, len(session.joints))
        session.commands.append(command)
        session.sender = "LeRobot"
        return sent

    def get_action(self):
        session.sender = "person"
        return originals[1](self)

    def send_feedback(self, feedback):
        session.sender = "LeRobot"  # which has read the leader to move it
        return originals[2](self, feedback)

    def select_action(self, batch):
        """Turn to the left."""
        session.sender = "policy"
        return torch.from_numpy(pan(40.0)).float()[None]

    monkeypatch.setattr(robot, "send_action", send_action)
    monkeypatch.setattr(SO101Leader, "get_action", get_action)
    monkeypatch.setattr(SO101Leader, "send_feedback", send_feedback)
    monkeypatch.setattr(ACTPolicy, "select_action", select_action)


@pytest.fixture
def run(monkeypatch):
    """`run("lerobot-record", "--robot.type=...", ...)`: run a command in this process."""

    def command(name, *options):
        monkeypatch.setattr(sys, "argv", [name, *options])
        importlib.import_module(f"lerobot.scripts.{name.replace('-', '_')}").main()

    return command


@pytest.fixture
def checkpoint(tmp_path):
    """A policy of LeRobot's for the arm and its camera."""
    torch.manual_seed(0)
    image = PolicyFeature(FeatureType.VISUAL, (3, *SIZE))
    state, action = (PolicyFeature(kind, (6,)) for kind in (FeatureType.STATE, FeatureType.ACTION))
    config = ACTConfig(
        input_features={"observation.state": state, "observation.images.top": image},
        output_features={"action": action},
        pretrained_backbone_weights=None,
        n_action_steps=ACT["chunk_size"],
        use_vae=False,
        device="cpu",
        push_to_hub=False,
        **ACT,
    )
    ACTPolicy(config).save_pretrained(tmp_path / "policy")
    for pipeline in make_pre_post_processors(config):
        pipeline.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def arms(session):
    """Options that connect LeRobot's commands to the arms and the camera."""
    ports = session.arm.config
    size = f"width: {SIZE[1]}, height: {SIZE[0]}, fps: {FPS}"
    camera = f"type: so101_virtual, view: top, port: {ports.follower_port}, {size}"
    return (
        f"--robot.type=so101_guarded --robot.id=virtual --robot.limits.velocity={LIMIT} "
        f"--teleop.type=so101_leader --teleop.id=virtual --play_sounds=false"
    ).split() + [
        f"--robot.port={ports.follower_port}",
        f"--teleop.port={ports.leader_port}",
        f"--robot.cameras={{top: {{{camera}}}}}",
    ]


def dataset(root, name):
    """Options of a dataset."""
    return (
        f"--dataset.repo_id=local/{name} --dataset.root={root / name} --dataset.no_stamp=true "
        f"--dataset.push_to_hub=false --dataset.single_task=Turn --dataset.rgb_encoder.vcodec=h264"
    ).split()


def check_motion(session):
    """Check that no joint was faster than its limit, and that no handover made the goals jump."""
    assert (session.speed()[:GRIPPER] < LIMIT * TOLERANCE).all()
    for before, after in session.handovers():
        tick = np.array([LIMIT * 0.1 + 0.2] * GRIPPER + [100])  # after a pause, as far as in 0.1 s
        assert (np.abs(after.sent - before.sent) <= tick).all(), (before, after)
        assert np.abs(after.sent - after.measured)[:GRIPPER].max() < 3 + LIMIT * 0.1, (before, after)


def recorded(root, name):
    """Return the rows of a dataset as arrays."""
    found = LeRobotDataset(f"local/{name}", root=root / name)
    return found, {
        key: np.stack(found.hf_dataset.with_format("numpy")[key])
        for key in ("action", "observation.state", "episode_index", "intervention")
    }


@pytest.mark.slow
def test_corrections_are_recorded_merged_and_trained_on(session, arms, checkpoint, run, tmp_path):
    """The leader begins 50 degrees away from the follower, and LeRobot aligns it."""
    aligned = []

    def person():
        session.move(pan(-50.0), 0.5)
        yield 1.5
        for goal in (10.0, 30.0):
            session.press("space")
            yield 3.5  # the leader is moved to the follower in 2 s
            aligned.append(np.abs(session.leader() - session.joints[-1])[:GRIPPER].max())
            session.take()
            session.press("tab")
            yield 0.5
            session.move(pan(goal), 1.0)
            yield 1.5
            session.press("tab")
            yield 0.5
            session.press("space")
            yield 1.0

    session.begin(person())
    options = ["--strategy.type=dagger", "--strategy.num_episodes=2", f"--policy.path={checkpoint}"]
    run("lerobot-rollout", *options, *arms, *dataset(tmp_path, "rollout_corrections"))

    # the arm
    assert max(aligned) < 2
    check_motion(session)
    senders = [before.sender for before, _ in session.handovers()]
    assert senders == ["policy", "LeRobot", "person", "LeRobot", "policy", "LeRobot", "person"]
    for _, after in session.handovers():
        if after.sender == "person":  # the leader is where the arm is
            assert np.abs(after.requested - after.measured)[:GRIPPER].max() < 2

    # the dataset
    corrections, rows = recorded(tmp_path, "rollout_corrections")
    person_sent = [command for command in session.commands if command.sender == "person"]
    assert corrections.num_episodes == 2
    assert rows["intervention"].all()
    np.testing.assert_allclose(rows["action"], [command.requested for command in person_sent], atol=1e-3)
    assert np.abs(rows["observation.state"] - [command.measured for command in person_sent]).max() < 1

    # merged with a demonstration, and trained on
    session.begin(iter(()))
    times = ["--dataset.num_episodes=1", "--dataset.episode_time_s=1", "--dataset.reset_time_s=0"]
    run("lerobot-record", *arms, *times, *dataset(tmp_path, "demos"))
    run(
        "lerobot-edit-dataset",
        "--operation.type=remove_feature",
        "--operation.feature_names=['intervention']",
        "--repo_id=local/rollout_corrections",
        f"--root={tmp_path}/rollout_corrections",
        "--new_repo_id=local/corrections",
        f"--new_root={tmp_path}/corrections",
    )
    run(
        "lerobot-edit-dataset",
        "--operation.type=merge",
        "--operation.repo_ids=['local/demos','local/corrections']",
        f"--operation.roots=['{tmp_path}/demos','{tmp_path}/corrections']",
        "--new_repo_id=local/merged",
        f"--new_root={tmp_path}/merged",
    )
    merged = LeRobotDataset("local/merged", root=tmp_path / "merged")
    assert merged.num_episodes == 3
    assert merged.num_frames == FPS + len(person_sent)
    assert merged[merged.num_frames - 1]["observation.images.top"].shape == (3, *SIZE)
    run(
        "lerobot-train",
        f"--policy.path={checkpoint}",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/merged",
        f"--dataset.root={tmp_path}/merged",
        f"--output_dir={tmp_path}/again",
        *("--steps=2", "--batch_size=2", "--num_workers=0", "--save_freq=2", "--log_freq=1"),
    )
    assert (tmp_path / "again/checkpoints/last/pretrained_model/model.safetensors").is_file()


@pytest.mark.slow
def test_a_leader_that_is_not_aligned_does_not_make_the_arm_jump(session, arms, checkpoint, run, tmp_path):
    def person():
        session.move(pan(-50.0), 0.5)
        yield 1.5
        session.press("space")
        yield 0.5
        session.press("tab")
        yield 2.5
        session.press("tab")
        yield 0.3
        session.press("space")
        yield 1.0
        session.press("esc")

    session.begin(person())
    options = ["--strategy.type=dagger", "--strategy.smooth_handover=false", f"--policy.path={checkpoint}"]
    options += ["--strategy.record_autonomous=true"]
    run("lerobot-rollout", *options, *arms, *dataset(tmp_path, "rollout_all"))
    check_motion(session)
    _, first = next(pair for pair in session.handovers() if pair[1].sender == "person")
    assert np.abs(first.requested - first.measured)[PAN] > 60

    _, rows = recorded(tmp_path, "rollout_all")
    commands = [command for command in session.commands if command.sender != "LeRobot"]
    assert rows["intervention"].ravel().tolist() == [command.sender == "person" for command in commands]
    np.testing.assert_allclose(rows["action"], [command.requested for command in commands], atol=1e-3)
    assert np.abs(rows["action"] - [command.sent for command in commands]).max() > 50  # not what was sent
