# SPDX-License-Identifier: Apache-2.0
"""Starts: frozen for evaluation, drawn from seeds for training, never the same; variations leave no trace."""

import dataclasses
import json

import mujoco
import numpy as np
import pytest

from lerobot_env_so101_workbench import start, variation
from lerobot_env_so101_workbench.start import N_EVAL_STARTS, Start, evaluation_start, training_start
from lerobot_env_so101_workbench.tasks import TASKS


def poses(begin: Start) -> np.ndarray:
    return np.array([begin.poses[name] for name in sorted(begin.poses)]).ravel()


def test_two_hundred_frozen_starts_lay_out_every_prop(scene_name):
    task, level = scene_name
    frozen = start.evaluation_starts(task, level)
    assert len(frozen) == 200
    names = {prop.name for prop in start.props_of(task, level)}
    assert all(set(begin.poses) == names and len(begin.joints) == 6 for begin in frozen)
    assert all((begin.variation is not None) == (level == "randomised") for begin in frozen)
    assert len({json.dumps(begin.to_json()) for begin in frozen}) == 200


def test_a_start_survives_json(scene_name):
    for begin in (training_start(*scene_name, 7), evaluation_start(*scene_name, 7)):
        assert Start.from_json(json.loads(json.dumps(begin.to_json()))) == begin


def test_the_seed_decides_and_nothing_else(scene_name):
    assert training_start(*scene_name, 3) == training_start(*scene_name, 3)
    assert training_start(*scene_name, 3) != training_start(*scene_name, 4)
    assert evaluation_start(*scene_name, 3) == evaluation_start(*scene_name, 3 + N_EVAL_STARTS)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed: found -1"):
        training_start("lift_cube", "clean", -1)


def test_no_training_start_is_an_evaluation_start(scene_name):
    frozen = np.array([poses(begin) for begin in start.evaluation_starts(*scene_name)])
    drawn = np.array([poses(training_start(*scene_name, seed)) for seed in range(500)])
    gaps = np.abs(drawn[:, None] - frozen[None]).max(axis=-1)
    assert gaps.min() > 1e-3


def test_frozen_starts_are_not_those_of_another_level():
    lists = [start.evaluation_starts("lift_cube", level) for level in ("clean", "distractors")]
    assert lists[0][0].poses["cube"] != lists[1][0].poses["cube"]


def test_cubes_start_all_over_the_work_area_at_any_angle():
    cubes = np.array([begin.poses["cube"] for begin in start.evaluation_starts("lift_cube", "clean")])
    assert (np.ptp(cubes[:, :2], axis=0) >= 0.19).all()
    quadrants = np.histogram(cubes[:, 2], bins=np.linspace(-np.pi, np.pi, 5))[0]
    assert (quadrants > 20).all()


def test_every_goal_of_sort_cubes_is_asked_for():
    goals = {begin.goal for begin in start.evaluation_starts("sort_cubes", "clean")}
    assert len(goals) == 6


def test_props_start_apart(scene_name):
    task, level = scene_name
    for number in range(50):
        places = np.array([pose[:2] for pose in evaluation_start(task, level, number).poses.values()])
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(len(places))
        assert gaps.min() > 0.04


def test_freezing_never_overwrites(tmp_path, monkeypatch):
    (tmp_path / "sort_cubes.json").write_text("published")
    monkeypatch.setattr(start, "N_EVAL_STARTS", 1)
    start.freeze(tmp_path)
    assert (tmp_path / "sort_cubes.json").read_text() == "published"
    assert (tmp_path / "lift_cube.json").exists()


def test_frozen_files_are_complete_json(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "N_EVAL_STARTS", 2)
    start.freeze(tmp_path)
    table = json.loads((tmp_path / "lift_cube.json").read_text())
    assert {level: len(entries) for level, entries in table.items()} == dict.fromkeys(start.LEVELS, 2)
    assert Start.from_json(table["randomised"][0]).variation is not None
    assert Start.from_json(table["clean"][0]) != training_start("lift_cube", "clean", 0)


def test_every_field_of_a_variation_varies():
    drawn = [training_start("sort_cubes", "randomised", seed).variation for seed in range(60)]
    for field in dataclasses.fields(variation.Variation):
        values = {repr(getattr(one, field.name)) for one in drawn}
        discrete = {"table_material": 5, "latency_ticks": 3}
        assert len(values) == discrete.get(field.name, 60), field.name


def test_a_colour_that_the_instruction_names_stays_that_colour():
    for seed in range(60):
        varied = training_start("sort_cubes", "randomised", seed).variation
        for prop in TASKS["sort_cubes"].props:
            dominant = np.argmax(varied.prop_rgb[prop.name])
            if prop.name.split()[0] in ("red", "green", "blue"):
                assert dominant == np.argmax(prop.rgb)


def model_arrays(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    names = [name for name in dir(model) if not name.startswith("_")]
    arrays = {name: getattr(model, name) for name in names}
    return {name: value.copy() for name, value in arrays.items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize("task", TASKS)
def test_taking_a_variation_back_restores_every_number_of_the_model(task, world_of):
    world = world_of(task, "randomised")
    world._applier.apply(None)
    before = model_arrays(world.model)
    assert "body_invweight0" in before
    for number in range(3):
        world._applier.apply(evaluation_start(task, "randomised", number).variation)
    changed = {k for k, v in model_arrays(world.model).items() if not np.array_equal(v, before[k])}
    assert {"body_mass", "body_invweight0", "cam_pos", "cam_fovy", "geom_friction", "mat_rgba"} <= changed
    world._applier.apply(None)
    for name, value in model_arrays(world.model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_first_variation_taken_back_restores_the_freshly_built_model():
    from lerobot_env_so101_workbench.world import World

    world = World("lift_cube", "randomised", renderer="ray")
    before = model_arrays(world.model)
    world.reset(evaluation_start("lift_cube", "randomised", 0))
    world._applier.apply(None)
    for name, value in model_arrays(world.model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_the_same_variation_gives_the_same_model_whatever_came_before(world_of):
    world = world_of("lift_cube", "randomised")
    varied = evaluation_start("lift_cube", "randomised", 5).variation
    world._applier.apply(varied)
    before = model_arrays(world.model)
    world._applier.apply(evaluation_start("lift_cube", "randomised", 6).variation)
    world._applier.apply(varied)
    for name, value in model_arrays(world.model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
