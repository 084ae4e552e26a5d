# SPDX-License-Identifier: Apache-2.0
"""Descriptions of initial states for people, with images."""

import json

import numpy as np
import PIL.Image
import pytest

from lerobot_env_so101_workbench.describe_initial_states import StartsConfig, describe, write_descriptions
from lerobot_env_so101_workbench.sim.initial_states import InitialState, evaluation_initial_state, props_of
from lerobot_env_so101_workbench.sim.scene import Prop
from lerobot_env_so101_workbench.tasks import Goal
from lerobot_robot_so101.real_env.initial_states import read_initial_states


def test_a_description_contains_every_pose():
    poses = {"cube": (0.213, -0.05, np.radians(120)), "bowl": (0.3, 0.1, 1.0)}
    props = (Prop("cube", "cube", (1, 0, 0)), Prop("bowl", "bowl", (0, 0, 1)))
    words = "cube 21 cm before the middle of the base, 5 cm to the right, turned 30 deg to the left; "
    words += "bowl 30 cm before the middle of the base, 10 cm to the left."
    assert describe(InitialState((0.0,) * 6, poses, Goal("cube")), props) == words


def test_the_evaluation_reads_what_is_written(tmp_path):
    path = write_descriptions(StartsConfig("place_cube", count=2, output=tmp_path, renderer="ray"))
    first, second = read_initial_states(path)
    assert first.name == "place_cube_clean_000"
    assert first.description == describe(
        evaluation_initial_state("place_cube", "clean", 0), props_of("place_cube", "clean")
    )
    assert "bowl" in first.instruction
    assert np.asarray(PIL.Image.open(second.image)).shape == (480, 1280, 3)
    assert json.loads(path.read_text())[1]["picture"] == "place_cube_clean_001.png"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "fly"}, "--task: found task 'fly'"),
        ({"count": 500}, "--count: found 500, expected 1 to 200"),
    ],
)
def test_invalid_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_descriptions(StartsConfig(output=tmp_path, **changes))
