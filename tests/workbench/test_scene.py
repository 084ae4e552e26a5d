# SPDX-License-Identifier: Apache-2.0
"""The scene: size of the meshes, classes, and the cache of the meshes."""

import importlib.util

import numpy as np
import pytest

from lerobot_env_so101_workbench.sim import assets, scene
from lerobot_env_so101_workbench.sim.initial_states import evaluation_initial_state, props_of
from lerobot_env_so101_workbench.tasks import TASKS
from lerobot_processor_so101.arm import arm_model_path

BASE = ("unlabeled", "background", "table", "cube", "static_finger", "moving_finger")
OWN_CLASSES = {
    "lift_cube": (),
    "place_cube": ("red cube", "blue bowl"),
    "sort_cubes": ("red cube", "green cube", "yellow cube", "blue bowl", "white bowl"),
    "pass_post": ("post", "pad"),
}


def test_the_visible_arm_has_few_triangles(world_of):
    model = world_of().model
    drawn = model.geom_dataid[(model.geom_group == 2) & (model.geom_dataid >= 0)]
    assert 10_000 < model.mesh_facenum[drawn].sum() < 30_000


@pytest.mark.parametrize("task", TASKS)
def test_class_ids_are_fixed_and_distractors_are_background(task):
    assert scene.class_names(props_of(task, "clean")) == BASE + OWN_CLASSES[task]
    assert scene.class_names(props_of(task, "randomised")) == BASE + OWN_CLASSES[task]


def test_distractors_and_the_arm_are_background_but_each_finger_is_its_own_class(world_of):
    world = world_of("lift_cube", "distractors")
    classes = scene.classes_of_geoms(world.model, world.props)
    bodies = world.model.geom_bodyid
    for prop in scene.DISTRACTORS:
        assert set(classes[bodies == world.model.body(prop.name).id]) == {1}
    assert classes[world.model.geom("static_finger").id] == 4
    assert classes[world.model.geom("moving_finger").id] == 5
    assert set(classes[bodies == world.model.body("upper_arm").id]) == {1}


def test_masks_contain_known_ids_and_the_top_camera_shows_every_prop(scene_name, world_of):
    task, level = scene_name
    world = world_of(task, level)
    for number in (0, 1):
        world.reset(evaluation_initial_state(task, level, number))
        for camera in scene.CAMERAS:
            ids = np.unique(world.render(camera, 84, 84, rgb=False, ids=True).ids)
            assert ids.min() >= 1
            assert ids.max() < len(world.class_names)
        visible = np.unique(world.render("top", 240, 240, rgb=False, ids=True).ids)
        wanted = {world.class_names.index(p.name) for p in world.props if not p.distractor}
        assert wanted <= set(visible.tolist())


def test_meshes_are_created_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SO101_WORKBENCH_CACHE", str(tmp_path / "cache"))
    scene.build(TASKS["lift_cube"].props)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert any(path.name.startswith(assets.FINGER_MESH) for path in made)
    scene.build(TASKS["lift_cube"].props)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == made


def test_a_missing_asset_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arm_model_path.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match=r"pip install 'so101-nexus>=0\.10,<0\.11'"):
            arm_model_path()
    finally:
        arm_model_path.cache_clear()
