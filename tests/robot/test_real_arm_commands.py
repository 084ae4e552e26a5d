# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/real_arm.md in order, from new servos to an evaluation, on two emulated arms.

The arms run in a process of their own, as `so101-virtual-arm` does. LeRobot's commands are called through
their main functions, in this process, because importing LeRobot takes longer than most of them.
"""

import builtins
import contextlib
import importlib
import json
import os
import queue
import subprocess
import sys
import threading

import numpy as np
import pytest
from lerobot.datasets import LeRobotDataset
from lerobot.motors import motors_bus
from lerobot.motors.feetech import feetech

from lerobot_env_so101_workbench.camera import SO101VirtualCamera
from lerobot_env_so101_workbench.sim import servos
from lerobot_env_so101_workbench.virtual_arm.calibration import FOLLOWER, LEADER, calibration_file
from lerobot_processor_so101 import arm
from lerobot_robot_so101.real_env import operator as human_operator

ID = "from-new-servos"
SIZE = "width: 32, height: 24, fps: 30"
COMMANDS = ("setup_motors", "calibrate", "teleoperate", "record", "replay", "train", "rollout", "eval")
# Joints move fast through their ranges, which takes 20 s for each arm by default, but rest at the ends until
# LeRobot has read them, also on a busy machine.
ARMS = """
from lerobot_env_so101_workbench.virtual_arm import console, joints
joints._HAND_SPEED *= 12
joints._HAND_PAUSE = 0.3
console.main()
"""


class Arms:
    """Two emulated arms in a process of their own, and its console."""

    def __init__(self, folder):
        self.follower, self.leader = folder / "follower", folder / "leader"
        options = ["--servos=new", f"--id={ID}", "--cameras=[top,wrist]", "--width=32", "--height=24"]
        ports = [f"--follower_port={self.follower}", f"--leader_port={self.leader}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", ARMS, *options, *ports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "MUJOCO_GL": "disable"},
        )
        self._lines = queue.Queue()
        threading.Thread(target=self._read_output, daemon=True).start()
        for name in COMMANDS:  # LeRobot is imported while the process imports the workbench
            importlib.import_module(f"lerobot.scripts.lerobot_{name}")
        self.wait_for("Type")

    def _read_output(self):
        for line in self._process.stdout:
            self._lines.put(line.strip())

    def has_printed(self, text):
        """Whether it has printed a line that contains this since the last call."""
        with contextlib.suppress(queue.Empty):
            while text not in self._lines.get_nowait():
                pass
            return True
        return False

    def wait_for(self, *beginnings):
        """Wait until it prints a line with one of these beginnings."""
        while not self._lines.get(timeout=120).startswith(beginnings):
            pass

    def do(self, line):
        """Type a command, and wait for its reply."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self.wait_for("ok", "On the cable")

    def close(self):
        self._process.kill()
        self._process.communicate()


def wait_for_replies(monkeypatch, seconds):
    """Set how long the driver waits for a reply; its 50 ms are too short on a busy machine."""

    def set_timeout(self, packet_length):
        self.packet_start_time = self.getCurrentTime()
        self.packet_timeout = 1000 * seconds

    monkeypatch.setattr(feetech, "patch_setPacketTimeout", set_timeout)


@pytest.fixture
def arms(tmp_path, monkeypatch):
    """The arms; driver and cameras have long timeouts for a busy machine."""

    wait_for_replies(monkeypatch, seconds=2)
    read_latest = SO101VirtualCamera.read_latest
    monkeypatch.setattr(
        SO101VirtualCamera, "read_latest", lambda camera: read_latest(camera, max_age_ms=60_000)
    )
    arms = Arms(tmp_path)
    yield arms
    arms.close()


@pytest.fixture
def run(monkeypatch):
    """`run("lerobot-record", "--robot.type=...", ...)`: run a command in this process."""

    def command(name, *options):
        monkeypatch.setattr(sys, "argv", [name, *options])
        importlib.import_module(f"lerobot.scripts.{name.replace('-', '_')}").main()

    return command


@pytest.mark.slow
def test_from_new_servos_to_an_evaluation(arms, run, tmp_path, monkeypatch):
    follower = ("--robot.type=so101_guarded", f"--robot.port={arms.follower}", f"--robot.id={ID}")
    leader = ("--teleop.type=so101_leader", f"--teleop.port={arms.leader}", f"--teleop.id={ID}")
    views = ", ".join(
        f"{view}: {{type: so101_virtual, view: {view}, port: {arms.follower}, {SIZE}}}"
        for view in ("top", "wrist")
    )
    cameras = f"--robot.cameras={{{views}}}"

    for device, side in ((follower, "follower"), (leader, "leader")):
        set_up_motors(run, arms, device, side, monkeypatch)
        calibrate(run, arms, device, side, monkeypatch)
    for folder in (FOLLOWER, LEADER):
        found = json.loads(calibration_file(folder, ID).read_text())
        for number, joint in enumerate(arm.JOINTS):
            if joint != "wrist_roll":  # LeRobot takes a full turn as its range
                turned = (found[joint]["range_max"] - found[joint]["range_min"]) * servos.ENCODER_STEP
                assert turned == pytest.approx(arm.UPPER[number] - arm.LOWER[number], abs=0.03), joint

    arms.do("leader release")
    run("lerobot-teleoperate", *follower, *leader, "--teleop_time_s=2")

    root, single_task = tmp_path / "recorded", "--dataset.single_task=Lift the cube."
    dataset = ("--dataset.repo_id=local/virtual", f"--dataset.root={root}", "--dataset.push_to_hub=false")
    times = ("--dataset.num_episodes=3", "--dataset.episode_time_s=1.5", "--dataset.reset_time_s=0.3")
    quiet = ("--dataset.no_stamp=true", "--play_sounds=false", "--dataset.rgb_encoder.vcodec=h264")
    run("lerobot-record", *follower, cameras, *leader, *dataset, single_task, *times, *quiet)
    check_recording(root)
    run("lerobot-replay", *follower, *dataset[:2], "--dataset.episode=0", "--play_sounds=false")

    small = [
        f"--policy.{name}" for name in ("image_size=16", "hidden_dim=16", "n_layers=1", "conv_channels=4")
    ]
    policy = ["--policy.type=segdepth", "--policy.encoder=rgb", "--policy.device=cpu", *small]
    trained = tmp_path / "trained"
    length = ["--steps=4", "--batch_size=4", "--num_workers=0", "--save_freq=4", "--log_freq=2"]
    run(
        "lerobot-train",
        *policy,
        "--policy.push_to_hub=false",
        *dataset[:2],
        f"--output_dir={trained}",
        *length,
    )

    checkpoint = (f"--policy.path={trained}/checkpoints/last/pretrained_model", "--policy.device=cpu")
    task, options = "--task=Lift the cube.", ("--strategy.type=base", "--duration=1.5")
    run("lerobot-rollout", *options, *checkpoint, *follower, cameras, task)

    evaluate(run, checkpoint, (*follower, cameras), tmp_path, monkeypatch)


def set_up_motors(run, arms, device, side, monkeypatch):
    """Attach the motors that LeRobot asks for, one at a time, and in the end all."""
    attached = []

    def attach(prompt):
        attached.append(prompt.split("'")[1])
        arms.do(f"{side} attach {attached[-1]}")

    monkeypatch.setattr(builtins, "input", attach)
    wait_for_replies(
        monkeypatch, seconds=0.3
    )  # at its end LeRobot waits for the motors that are not attached
    run("lerobot-setup-motors", *device)
    wait_for_replies(monkeypatch, seconds=2)
    assert attached == list(reversed(arm.JOINTS))
    arms.do(f"{side} attach all")


def calibrate(run, arms, device, side, monkeypatch):
    """Move the arm as LeRobot asks for."""
    begun = []

    def move_to_the_middle(prompt):
        assert "middle of its range" in prompt
        arms.do(f"{side} middle")
        arms.wait_for("so101-virtual-arm: joints without torque are held")

    def moved_through_ranges():
        if not begun:
            arms.do(f"{side} ranges")
            begun.append(True)
        return arms.has_printed("through their ranges")

    monkeypatch.setattr(builtins, "input", move_to_the_middle)
    monkeypatch.setattr(motors_bus, "enter_pressed", moved_through_ranges)
    run("lerobot-calibrate", *device)


def check_recording(root):
    """Check that the arm follows its leader in three episodes, and that both cameras have images."""
    recorded = LeRobotDataset("local/virtual", root=root)
    rows = recorded.hf_dataset.with_format("numpy")
    actions, states = np.stack(rows["action"]), np.stack(rows["observation.state"])
    assert set(rows["episode_index"]) == {0, 1, 2}
    assert np.abs(actions - states)[:, :5].mean() < 15  # deg; the leader moves on while the arm follows
    assert np.ptp(states, axis=0).max() > 0.5
    for camera in ("top", "wrist"):
        image = recorded[0][f"observation.images.{camera}"]
        assert image.shape == (3, 24, 32)
        assert image.std() > 0.02  # not uniform


def evaluate(run, checkpoint, robot, folder, monkeypatch):
    """Evaluate one initial state, and judge it a success."""
    state = {"name": "s0", "description": "cube at 25 cm", "instruction": "Lift the cube."}
    (folder / "starts.json").write_text(json.dumps([state]))
    answers = ["", "y"]
    monkeypatch.setattr(
        human_operator.Operator.__init__,
        "__defaults__",
        (lambda question: answers.pop(0), lambda on_key: None),
    )
    files = (f"--env.starts={folder}/starts.json", f"--env.results={folder}/results.jsonl")
    times = ("--env.episode_time_s=1", "--env.home_time_s=0.5")
    length = ("--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false")
    robot = [f"--env.{option.removeprefix('--')}" for option in robot]
    output = f"--output_dir={folder}/evaluated"
    run("lerobot-eval", *checkpoint, "--env.type=so101_real", *robot, *files, *times, *length, output)
    (result,) = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    assert (result["start"], result["success"]) == ("s0", True)
