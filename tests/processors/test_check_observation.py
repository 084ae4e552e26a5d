# SPDX-License-Identifier: Apache-2.0
"""Observations that are refused: another rate, another aspect ratio, a frozen camera."""

import pytest
import torch
from lerobot.processor import PolicyProcessorPipeline

from lerobot_env_so101_workbench import SO101SimEnvConfig
from lerobot_processor_so101 import CheckObservationProcessorStep
from lerobot_processor_so101.perception.keys import FPS

KEY = "observation.images.top"


def image(value: float = 0.0, height: int = 60, width: int = 80) -> dict:
    return {KEY: torch.full((1, 3, height, width), value), "observation.state": torch.zeros(1, 6)}


def test_the_workbench_adds_its_rate_and_another_one_is_refused():
    add_rate, _ = SO101SimEnvConfig().get_env_processors()
    observation = add_rate(image())
    checked = CheckObservationProcessorStep(fps=30).observation(observation)
    assert FPS in observation
    assert FPS not in checked
    with pytest.raises(ValueError, match=r"fps: found 30 Hz, expected 50 Hz.*--policy\.fps"):
        CheckObservationProcessorStep(fps=50).observation(observation)
    CheckObservationProcessorStep(fps=50).observation(image())  # a robot adds no rate


def test_images_of_another_aspect_ratio_are_refused_and_of_another_size_not():
    step = CheckObservationProcessorStep(fps=30, aspects={KEY: 4 / 3})
    step.observation(image(height=480, width=640))
    with pytest.raises(
        ValueError, match=r"observation\.images\.top: found 480x480 pixels, expected a width of 1\.33"
    ):
        step.observation(image(height=480, width=480))


def test_a_frozen_camera_is_refused_and_one_that_recovers_is_not():
    step = CheckObservationProcessorStep(fps=30, aspects={KEY: 4 / 3}, max_still=3)
    for value in (0.0, 0.0, 0.0, 0.1, 0.1, 0.1):
        step.observation(image(value))
    with pytest.raises(
        ValueError, match=r"observation\.images\.top: found the same image 4 times.*camera is frozen"
    ):
        step.observation(image(0.1))


def test_the_step_is_rebuilt_from_json(tmp_path):
    step = CheckObservationProcessorStep(fps=30, aspects={KEY: 4 / 3}, max_still=3)
    PolicyProcessorPipeline(steps=[step], name="pipeline").save_pretrained(tmp_path)
    loaded = PolicyProcessorPipeline.from_pretrained(tmp_path, config_filename="pipeline.json")
    assert loaded.steps[0].get_config() == step.get_config()
