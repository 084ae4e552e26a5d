# SPDX-License-Identifier: Apache-2.0
"""Roles of objects by the task sentence."""

import pytest
import torch
from lerobot.processor import PolicyProcessorPipeline

from lerobot_processor_so101 import AddClassNamesProcessorStep, RolesProcessorStep
from lerobot_processor_so101.perception.roles import Roles

ROLES = {"target": "cube", "container": "bowl"}
WATCHED = ["target", "container", "finger"]
SORT = ["background", "finger", "red cube", "green cube", "blue bowl", "white bowl"]
PLACE = ["background", "cube", "finger", "blue bowl"]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Put the red cube into the blue bowl.", [2, 4, 1]),
        ("Put the green cube into the white bowl.", [3, 5, 1]),
        ("Into the WHITE bowl, please put the red_cube", [2, 5, 1]),
        ("Put the block into the white bowl.", [3, 5, 1]),  # a synonym
    ],
)
def test_the_sentence_decides(sentence, expected):
    assert Roles(WATCHED, ROLES, SORT, {"green cube": ["block"], "post": ["pole"]}).ids(sentence) == expected


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        (
            "Put the ball into the blue bowl.",
            r"names none for the role 'target', expected one of .*red cube.*green",
        ),
        ("Put the cube into the blue bowl.", r"names \['red cube', 'green cube'\] for the role 'target'"),
        ("Put the red cube away.", "names none for the role 'container'"),
        ("Put the red cube and the green cube into the blue bowl.", r"names \['red cube', 'green cube'\]"),
    ],
)
def test_a_sentence_that_does_not_name_one_object_is_an_error(sentence, message):
    with pytest.raises(ValueError, match=message):
        Roles(WATCHED, ROLES, SORT).ids(sentence)


@pytest.mark.parametrize(
    ("watched", "roles", "missing"),
    [(WATCHED, {**ROLES, "target": "ball"}, "target"), ([*WATCHED, "thumb"], ROLES, "thumb")],
)
def test_a_role_or_class_without_a_class_is_an_error(watched, roles, missing):
    with pytest.raises(ValueError, match=rf"watched_classes: found no class for \['{missing}'\]"):
        Roles(watched, roles, SORT)


def run(step: RolesProcessorStep, task, *before) -> torch.Tensor:
    pipeline = PolicyProcessorPipeline(steps=[*before, step])
    return pipeline({"observation.state": torch.zeros(2, 6), "task": task})["observation.watched"]


def step(observed: bool) -> RolesProcessorStep:
    return RolesProcessorStep(WATCHED, ROLES, PLACE, observed=observed)


def test_each_sample_of_a_batch_has_its_sentence():
    sentences = ["Put the cube into the bowl.", "Put the cube into the blue bowl."]
    assert run(step(True), sentences).tolist() == [[1, 3, 2], [1, 3, 2]]
    names = AddClassNamesProcessorStep(SORT)
    sentences = ["Put the green cube into the blue bowl.", "Put the red cube into the white bowl."]
    assert run(step(True), sentences, names).tolist() == [[3, 4, 1], [2, 5, 1]]


def test_a_segmenter_keeps_its_own_classes():
    """The environment's names are those of its own masks, which a policy with a segmenter does not read."""
    sentence = ["Put the cube into the blue bowl."]
    assert run(step(False), sentence, AddClassNamesProcessorStep(SORT)).tolist() == [[1, 3, 2]]


def test_without_a_sentence_there_is_an_error():
    with pytest.raises(ValueError, match="task: found no sentence"):
        run(step(True), None)


def test_a_saved_step_comes_back(tmp_path):
    PolicyProcessorPipeline(steps=[step(True)], name="roles").save_pretrained(tmp_path)
    loaded = PolicyProcessorPipeline.from_pretrained(tmp_path, config_filename="roles.json")
    assert loaded.steps == [step(True)]
