# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/real_arm.md, one after the other: from new servos to an evaluation, on two emulated arms.

The arms run as a process of their own, as `so101-virtual-arm` in another terminal does; LeRobot's commands are called by
their main functions with the words of a command line.
"""

import builtins
import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from lerobot.datasets import LeRobotDataset
from lerobot.motors import motors_bus
from lerobot.motors.feetech import feetech

from lerobot_env_so101_workbench import arm
from lerobot_env_so101_workbench.camera import SO101VirtualCamera
from lerobot_env_so101_workbench.virtual_calibration import FOLLOWER, LEADER, calibration_file
from lerobot_robot_so101 import human_operator

ID = "from-new-servos"
SIZE = "width: 32, height: 24, fps: 30"
# A hand that hurries: 20 s of moving joints through their ranges would be most of this test.
ARMS = """
from lerobot_env_so101_workbench import virtual_arm_console, virtual_joints
virtual_joints._HAND_SPEED *= 6
virtual_joints._HAND_PAUSE /= 2
virtual_arm_console.main()
"""


class Arms:
    """Two emulated arms in a process of their own, and the person who types there."""

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
        threading.Thread(target=self._listen, daemon=True).start()
        self.wait_for("Type")

    def _listen(self):
        for line in self._process.stdout:
            self._lines.put(line.strip())

    def says(self, words):
        """Whether it has said this meanwhile."""
        with contextlib.suppress(queue.Empty):
            while words not in self._lines.get_nowait():
                pass
            return True
        return False

    def wait_for(self, *words):
        """Wait until it says one of these."""
        while not (line := self._lines.get(timeout=120)).startswith(words):
            pass
        return line

    def do(self, line):
        """Type a line, and wait for its answer."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self.wait_for("ok", "On the cable")

    def close(self):
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def arms(tmp_path, monkeypatch):
    """The arms; driver and cameras wait for a busy machine, and signals are heard by who heard them before."""

    def set_timeout(self, packet_length):
        self.packet_start_time = self.getCurrentTime()
        self.packet_timeout = 2000

    monkeypatch.setattr(feetech, "patch_setPacketTimeout", set_timeout)
    look = SO101VirtualCamera.read_latest
    monkeypatch.setattr(SO101VirtualCamera, "read_latest", lambda camera: look(camera, max_age_ms=60_000))
    heard = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    running = Arms(tmp_path)
    yield running
    running.close()
    for name, handler in heard.items():
        signal.signal(name, handler)


@pytest.fixture
def run(monkeypatch):
    """`run("lerobot-record", "--robot.type=...", ...)`: the command."""

    def command(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        importlib.import_module(f"lerobot.scripts.{name.replace('-', '_')}").main()

    return command


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
            if joint != "wrist_roll":  # which LeRobot takes for a full turn
                turned = (found[joint]["range_max"] - found[joint]["range_min"]) * arm.ENCODER_STEP
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
    asked = []

    def connect_it(prompt):
        asked.append(prompt.split("'")[1])
        arms.do(f"{side} attach {asked[-1]}")

    monkeypatch.setattr(builtins, "input", connect_it)
    run("lerobot-setup-motors", *device)
    assert asked == list(reversed(arm.JOINTS))
    arms.do(f"{side} attach all")


def calibrate(run, arms, device, side, monkeypatch):
    """Do with the arm what LeRobot asks for."""
    begun = []

    def bring_to_the_middle(prompt):
        assert "middle of its range" in prompt
        arms.do(f"{side} middle")
        arms.wait_for("so101-virtual-arm: the limp joints are there")

    def moved_through_ranges():
        if not begun:
            begun.append(arms.do(f"{side} ranges"))
        return arms.says("been through their ranges")

    monkeypatch.setattr(builtins, "input", bring_to_the_middle)
    monkeypatch.setattr(motors_bus, "enter_pressed", moved_through_ranges)
    run("lerobot-calibrate", *device)


def check_recording(root):
    """Three episodes in which the arm follows its leader, seen by two cameras."""
    recorded = LeRobotDataset("local/virtual", root=root)
    rows = recorded.hf_dataset.with_format("numpy")
    told, seen = np.stack(rows["action"]), np.stack(rows["observation.state"])
    assert set(rows["episode_index"]) == {0, 1, 2}
    assert np.abs(told - seen)[:, :5].mean() < 15  # deg; the leader moves on while the arm follows
    assert np.ptp(seen, axis=0).max() > 0.5
    for camera in ("top", "wrist"):
        picture = recorded[0][f"observation.images.{camera}"]
        assert picture.shape == (3, 24, 32)
        assert picture.std() > 0.02  # something can be seen


def evaluate(run, checkpoint, robot, folder, monkeypatch):
    """Have one start laid out, and call what came of it a success."""
    start = {"name": "s0", "description": "cube at 25 cm", "instruction": "Lift the cube."}
    (folder / "starts.json").write_text(json.dumps([start]))
    answers = ["", "y"]
    monkeypatch.setattr(
        human_operator.Operator.__init__, "__defaults__", (lambda words: answers.pop(0), lambda heard: None)
    )
    files = (f"--env.starts={folder}/starts.json", f"--env.results={folder}/results.jsonl")
    times = ("--env.episode_time_s=1", "--env.home_time_s=0.5")
    length = ("--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false")
    robot = [f"--env.{word.removeprefix('--')}" for word in robot]
    output = f"--output_dir={folder}/evaluated"
    run("lerobot-eval", *checkpoint, "--env.type=so101_real", *robot, *files, *times, *length, output)
    (result,) = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    assert (result["start"], result["success"]) == ("s0", True)
