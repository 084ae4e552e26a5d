# SPDX-License-Identifier: Apache-2.0
"""Initial states: frozen for evaluation, drawn from seeds for training; variations can be removed."""

import dataclasses
import json

import mujoco
import numpy as np
import pytest

from lerobot_env_so101_workbench.sim import initial_states, variation
from lerobot_env_so101_workbench.sim.initial_states import (
    N_EVALUATION,
    InitialState,
    evaluation_initial_state,
    training_initial_state,
    validation_initial_state,
)
from lerobot_env_so101_workbench.tasks import TASKS


def poses(state: InitialState) -> np.ndarray:
    return np.array([state.poses[name] for name in sorted(state.poses)]).ravel()


def test_two_hundred_frozen_initial_states_contain_every_prop(scene_name):
    task, level = scene_name
    frozen = initial_states.evaluation_initial_states(task, level)
    assert len(frozen) == 200
    names = {prop.name for prop in initial_states.props_of(task, level)}
    assert all(set(state.poses) == names and len(state.joints) == 6 for state in frozen)
    assert all((state.variation is not None) == (level == "randomised") for state in frozen)
    assert len({json.dumps(state.to_json()) for state in frozen}) == 200


def test_an_initial_state_survives_json(scene_name):
    for state in (training_initial_state(*scene_name, 7), evaluation_initial_state(*scene_name, 7)):
        assert InitialState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_an_initial_state_depends_on_the_seed_only(scene_name):
    assert training_initial_state(*scene_name, 3) == training_initial_state(*scene_name, 3)
    assert training_initial_state(*scene_name, 3) != training_initial_state(*scene_name, 4)
    assert evaluation_initial_state(*scene_name, 3) == evaluation_initial_state(*scene_name, 3 + N_EVALUATION)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed: found -1"):
        training_initial_state("lift_cube", "clean", -1)


def test_validation_states_repeat_after_two_hundred(scene_name):
    assert validation_initial_state(*scene_name, 3) == validation_initial_state(*scene_name, 203)
    assert validation_initial_state(*scene_name, 3) != validation_initial_state(*scene_name, 4)


def test_training_validation_and_evaluation_states_are_disjoint(scene_name):
    frozen = np.array([poses(state) for state in initial_states.evaluation_initial_states(*scene_name)])
    training = np.array([poses(training_initial_state(*scene_name, seed)) for seed in range(500)])
    validation = np.array([poses(validation_initial_state(*scene_name, index)) for index in range(200)])
    for one, other in ((training, frozen), (training, validation), (validation, frozen)):
        gaps = np.abs(one[:, None] - other[None]).max(axis=-1)
        assert gaps.min() > 1e-3


def test_frozen_initial_states_differ_between_levels():
    lists = [
        initial_states.evaluation_initial_states("lift_cube", level) for level in ("clean", "distractors")
    ]
    assert lists[0][0].poses["cube"] != lists[1][0].poses["cube"]


def test_cubes_cover_the_work_area_at_any_angle():
    cubes = np.array(
        [state.poses["cube"] for state in initial_states.evaluation_initial_states("lift_cube", "clean")]
    )
    assert (np.ptp(cubes[:, :2], axis=0) >= 0.19).all()
    quadrants = np.histogram(cubes[:, 2], bins=np.linspace(-np.pi, np.pi, 5))[0]
    assert (quadrants > 20).all()


def test_sort_cubes_has_every_goal():
    goals = {state.goal for state in initial_states.evaluation_initial_states("sort_cubes", "clean")}
    assert len(goals) == 6


def test_props_are_apart(scene_name):
    task, level = scene_name
    for number in range(50):
        positions = np.array(
            [pose[:2] for pose in evaluation_initial_state(task, level, number).poses.values()]
        )
        gaps = np.linalg.norm(positions[:, None] - positions[None], axis=-1) + np.eye(len(positions))
        assert gaps.min() > 0.04


def test_freezing_never_overwrites(tmp_path, monkeypatch):
    (tmp_path / "sort_cubes.json").write_text("published")
    monkeypatch.setattr(initial_states, "N_EVALUATION", 1)
    initial_states.freeze(tmp_path)
    assert (tmp_path / "sort_cubes.json").read_text() == "published"
    assert (tmp_path / "lift_cube.json").exists()


def test_frozen_files_are_complete_json(tmp_path, monkeypatch):
    monkeypatch.setattr(initial_states, "N_EVALUATION", 2)
    initial_states.freeze(tmp_path)
    table = json.loads((tmp_path / "lift_cube.json").read_text())
    assert {level: len(entries) for level, entries in table.items()} == dict.fromkeys(
        initial_states.LEVELS, 2
    )
    assert InitialState.from_json(table["randomised"][0]).variation is not None
    assert InitialState.from_json(table["clean"][0]) != training_initial_state("lift_cube", "clean", 0)


def test_every_field_of_a_variation_varies():
    drawn = [training_initial_state("sort_cubes", "randomised", seed).variation for seed in range(60)]
    for field in dataclasses.fields(variation.Variation):
        values = {repr(getattr(one, field.name)) for one in drawn}
        discrete = {"table_material": 5, "latency_ticks": 3}
        assert len(values) == discrete.get(field.name, 60), field.name


def test_a_colour_named_in_the_instruction_stays_that_colour():
    for seed in range(60):
        varied = training_initial_state("sort_cubes", "randomised", seed).variation
        for prop in TASKS["sort_cubes"].props:
            dominant = np.argmax(varied.prop_rgb[prop.name])
            if prop.name.split()[0] in ("red", "green", "blue"):
                assert dominant == np.argmax(prop.rgb)


def model_arrays(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    names = [name for name in dir(model) if not name.startswith("_")]
    arrays = {name: getattr(model, name) for name in names}
    return {name: value.copy() for name, value in arrays.items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize("task", TASKS)
def test_removing_a_variation_restores_every_number_of_the_model(task, world_of):
    world = world_of(task, "randomised")
    world._variation.apply(None)
    before = model_arrays(world.model)
    assert "body_invweight0" in before
    for number in range(3):
        world._variation.apply(evaluation_initial_state(task, "randomised", number).variation)
    changed = {k for k, v in model_arrays(world.model).items() if not np.array_equal(v, before[k])}
    assert {"body_mass", "body_invweight0", "cam_pos", "cam_fovy", "geom_friction", "mat_rgba"} <= changed
    world._variation.apply(None)
    for name, value in model_arrays(world.model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_removing_the_first_variation_restores_the_compiled_model():
    from lerobot_env_so101_workbench.sim.world import World

    world = World("lift_cube", "randomised", renderer="ray")
    before = model_arrays(world.model)
    world.reset(evaluation_initial_state("lift_cube", "randomised", 0))
    world._variation.apply(None)
    for name, value in model_arrays(world.model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_variation_gives_the_same_model_after_any_other(world_of):
    world = world_of("lift_cube", "randomised")
    varied = evaluation_initial_state("lift_cube", "randomised", 5).variation
    world._variation.apply(varied)
    before = model_arrays(world.model)
    world._variation.apply(evaluation_initial_state("lift_cube", "randomised", 6).variation)
    world._variation.apply(varied)
    for name, value in model_arrays(world.model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
