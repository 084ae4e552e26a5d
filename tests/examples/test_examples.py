# SPDX-License-Identifier: Apache-2.0
"""Every short example runs, offline and with tiny settings, and prints its result."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from examples import demo, own_task, perceive, run_policy, sort_by_sentence, virtual_arm_episode
from lerobot.motors.feetech import feetech
from lerobot.robots import robot
from PIL import Image

from lerobot_env_so101_workbench import CameraSetup, names
from lerobot_env_so101_workbench.sim import expert
from lerobot_env_so101_workbench.tasks import TASKS
from lerobot_env_so101_workbench.virtual_arm import calibration
from lerobot_processor_so101 import OBSERVED
from tests.golden import replay
from tests.slow_machine import set_timeout


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(module, *arguments)`: what an example prints."""

    def output_of(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        module.main()
        return capsys.readouterr().out

    return output_of


def test_perceive(run):
    printed = run(perceive, "--frames=2").splitlines()
    shares = {line.split()[0]: float(line.split()[1]) for line in printed[:6]}
    assert shares["table"] > 40
    assert shares["cube"] > 0
    assert sum(shares.values()) == pytest.approx(100, abs=0.1)
    assert printed[-1].endswith("frames per second")


@pytest.mark.parametrize("name", ["segdepth", "segdepth_workbench"])
def test_run_policy(name, run, tmp_path):
    checkpoint = replay.unpack(name, tmp_path)
    printed = run(run_policy, f"--checkpoint={checkpoint}", "--height=16", "--width=24")
    assert "segdepth: Lift the cube." in printed
    gripper = next(line for line in printed.splitlines() if line.startswith("gripper"))
    assert 0 <= float(gripper.split()[2]) <= 100


@pytest.mark.parametrize("segmenter", [OBSERVED, "sorting"])
def test_sort_by_sentence(segmenter, run, tmp_path, monkeypatch):
    class Expert:
        """Acts in place of a trained policy."""

        def __init__(self, *_):
            self.reset = lambda seed: None
            self.cameras = CameraSetup(("top", "wrist"), 48, 64)

        def act(self, world):
            return expert.Expert(world).decide().action

    monkeypatch.setattr(sort_by_sentence, "Actor", Expert)
    monkeypatch.setattr(sort_by_sentence, "read_config", lambda _: SimpleNamespace(segmenter=segmenter))
    monkeypatch.setattr(sort_by_sentence, "SIDE", 48)
    monkeypatch.setattr(sort_by_sentence, "WIDTH", 64)
    sentences = ("Put the green cube into the white bowl.", "Put the red cube into the blue bowl.")
    film = tmp_path / "film.webp"
    printed = run(sort_by_sentence, "--checkpoint=none", f"--output={film}", "--sentences", *sentences)
    assert [line.split(": ")[1].split()[0] for line in printed.splitlines()[:2]] == ["done", "done"]
    with Image.open(film) as image:
        assert image.n_frames > 30  # equal ones are stored once
    with pytest.raises(ValueError, match="names none for the role 'container'"):
        run(sort_by_sentence, "--checkpoint=none", f"--output={film}", "--sentences", "Lift the red cube.")


def test_the_demo_refuses_a_sentence_before_its_first_step(run, tmp_path, capsys):
    out = tmp_path / "demo"
    with pytest.raises(SystemExit):
        run(demo, f"--out={out}", "--instruction=Put the blue cube into the white bowl.")
    assert "'target'" in capsys.readouterr().err
    assert not out.exists()


def test_own_task(run, monkeypatch, tmp_path):
    monkeypatch.setitem(TASKS, "lift_white_cube", None)  # both are restored after the test
    monkeypatch.setattr(names, "TASK_NAMES", names.TASK_NAMES)
    printed = run(own_task, f"--output={tmp_path / 'task.png'}")
    assert "Lift the white cube. success: True" in printed
    assert np.asarray(Image.open(tmp_path / "task.png")).std() > 10


def test_virtual_arm_episode(run, monkeypatch, tmp_path):
    monkeypatch.setattr(feetech, "patch_setPacketTimeout", set_timeout)
    for module in (robot, calibration):
        monkeypatch.setattr(module, "HF_LEROBOT_CALIBRATION", tmp_path)
    printed = run(virtual_arm_episode, f"--port={tmp_path / 'port'}", "--seconds=1").splitlines()
    sent, measured = (float(printed[-1].split()[column]) for column in (3, 5))
    assert sent == pytest.approx(measured, abs=6)
    assert sent - float(printed[0].split()[3]) > 15
    assert not (tmp_path / "port").exists()
