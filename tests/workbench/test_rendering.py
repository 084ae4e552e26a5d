# SPDX-License-Identifier: Apache-2.0
"""Images agree between backends, and renderers do not affect each other."""

import gc
import logging

import mujoco
import numpy as np
import pytest

from lerobot_env_so101_workbench.sim import rendering
from lerobot_env_so101_workbench.sim.initial_states import evaluation_initial_state, training_initial_state
from lerobot_env_so101_workbench.sim.raycast import RayRenderer
from lerobot_env_so101_workbench.sim.rendering import make_renderer
from lerobot_env_so101_workbench.sim.scene import CAMERAS
from lerobot_env_so101_workbench.sim.world import World

ALL = {"rgb": True, "ids": True, "depth": True}


def start_world(backend: str, number: int = 0) -> World:
    world = World("place_cube", "distractors", renderer=backend)
    world.reset(evaluation_initial_state("place_cube", "distractors", number))
    return world


@pytest.fixture
def fresh_log(caplog):
    """`fresh_log()`: the lines logged from here on."""
    rendering._log_once.cache_clear()
    caplog.set_level(logging.INFO, logger=rendering.logger.name)
    return lambda: [r.getMessage() for r in caplog.records if r.name == rendering.logger.name]


def assert_same(found, expected):
    for image, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(image, other)


def test_shapes_and_kinds_of_the_ray_caster(world_of):
    frame = world_of().render("wrist", 24, 32, **ALL)
    assert (frame.rgb.shape, frame.rgb.dtype) == ((24, 32, 3), np.uint8)
    assert (frame.ids.shape, frame.ids.dtype) == ((24, 32), np.uint8)
    assert (frame.depth.shape, frame.depth.dtype) == ((24, 32), np.float32)
    assert world_of().render("wrist", 24, 32, rgb=False, depth=True)[:2] == (None, None)


@pytest.mark.parametrize("camera", CAMERAS)
def test_ray_caster_and_opengl_agree(gl, camera):
    world = start_world(gl)
    drawn = world.render(camera, 84, 84, **ALL)
    cast = make_renderer(world.model, world._classes, "ray").render(world.data, camera, (84, 84), **ALL)
    assert (drawn.ids == cast.ids).mean() > 0.99
    assert np.median(np.abs(drawn.depth - cast.depth)) < 1e-3
    assert np.abs(drawn.rgb.astype(float) - cast.rgb).mean() < 20
    world.close()


@pytest.fixture(params=["ray", "opengl"])
def backend(request):
    return "ray" if request.param == "ray" else request.getfixturevalue("gl")


def test_table_depth_is_the_distance_to_the_table_plane(backend):
    world, side = start_world(backend), 64
    frame = world.render("top", side, side, rgb=False, ids=True, depth=True)
    camera = world.model.camera("top").id
    pos, axes = world.data.cam_xpos[camera], world.data.cam_xmat[camera].reshape(3, 3)
    focal = side / 2 / np.tan(np.radians(world.model.cam_fovy[camera]) / 2)
    rows, columns = np.nonzero(frame.ids == world.class_names.index("table"))
    rays = np.stack(
        [(columns + 0.5 - side / 2) / focal, (side / 2 - rows - 0.5) / focal, -np.ones(len(rows))]
    )
    expected = -pos[2] / (axes @ rays)[2]  # along the optical axis, to z = 0
    assert len(rows) > 300
    errors = np.abs(frame.depth[rows, columns] - expected)
    assert np.median(errors) < 5e-4
    assert np.quantile(errors, 0.9) < 2e-3  # the rest is the table's own rim
    world.close()


@pytest.mark.parametrize("how", ["closed", "garbage-collected"])
def test_closing_one_renderer_does_not_affect_another(gl, how):
    kept, gone = start_world(gl, 0), start_world(gl, 1)
    before = kept.render("top", 64, 64, **ALL)
    gone.render("top", 64, 64, **ALL)
    kept.render("top", 64, 64)  # whose context is current when the other one ends
    if how == "closed":
        gone.close()
    del gone
    gc.collect()
    assert_same(kept.render("top", 64, 64, **ALL), before)
    again = start_world(gl, 0)
    assert_same(again.render("top", 64, 64, **ALL), before)
    again.close()
    kept.close()


def test_larger_images_in_between_change_nothing(gl):
    world = start_world(gl)
    before = world.render("top", 84, 84, **ALL)
    for height, width in ((480, 640), (700, 500)):
        large = world.render("top", height, width, **ALL)
        assert large.ids.shape == (height, width)
        assert set(np.unique(before.ids)) <= set(np.unique(large.ids))
        assert large.rgb.std() > 10
    assert_same(world.render("top", 84, 84, **ALL), before)
    world.close()


def test_a_closed_renderer_raises(gl):
    world = start_world(gl)
    renderer = world.renderer
    world.close()
    world.close()
    with pytest.raises(RuntimeError, match="closed"):
        renderer.render(world.data, "top", (32, 32), **ALL)


@pytest.mark.parametrize("value", ["disable", "off", " Disable "])
def test_mujoco_gl_disable_selects_the_ray_caster_and_logs_it_once(value, world_of, fresh_log, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", value)
    world = world_of()
    made = [make_renderer(world.model, world._classes) for _ in range(2)]
    assert all(isinstance(renderer, RayRenderer) for renderer in made)
    (line,) = fresh_log()
    assert "ray-caster" in line


def test_an_unknown_backend_is_refused(world_of):
    with pytest.raises(ValueError, match="renderer: found 'vulkan', expected one of auto, egl"):
        make_renderer(world_of().model, world_of()._classes, "vulkan")


@pytest.fixture
def broken_driver(monkeypatch):
    def fail(*_):
        raise OSError("driver is broken")

    monkeypatch.setattr(rendering, "_make_context", fail)
    monkeypatch.setattr(rendering, "_automatic_backend", lambda: "egl")
    monkeypatch.delenv("MUJOCO_GL", raising=False)


def test_a_named_backend_that_fails_is_an_error_with_a_remedy(broken_driver, world_of):
    with pytest.raises(RuntimeError, match=r"egl does not work.*driver is broken.*MUJOCO_GL=disable"):
        make_renderer(world_of().model, world_of()._classes, "egl")


def test_auto_falls_back_to_the_ray_caster_and_logs_why(broken_driver, world_of, fresh_log):
    assert isinstance(make_renderer(world_of().model, world_of()._classes), RayRenderer)
    (line,) = fresh_log()
    assert "driver is broken" in line


def test_a_variation_changes_the_images(backend):
    world = World("lift_cube", "randomised", renderer=backend)
    images = []
    for number in (0, 1):
        world.reset(evaluation_initial_state("lift_cube", "randomised", number))
        world.data.qpos[:6] = 0.0
        mujoco.mj_forward(world.model, world.data)
        images.append(world.render("front", 32, 32).rgb.astype(float))
    assert np.abs(images[0] - images[1]).mean() > 5
    world.close()


def test_shadows_are_coherent_under_every_lamp(gl):
    """Outside the map of a lamp that has moved, surfaces would be striped."""
    images = []
    for shadows in (False, True):
        world = World("sort_cubes", "randomised", renderer=gl, shadows=shadows)
        rendered = []
        for seed in range(4):
            world.reset(training_initial_state("sort_cubes", "randomised", seed))
            rendered.append(world.render("top", 240, 320).rgb.astype(int).sum(-1))
        world.close()
        images.append(np.stack(rendered))
    lit, shaded = images
    dark = shaded < lit - 20
    assert (dark.mean((1, 2)) > 0.005).all()
    beside = dark[:, :, 1:] == dark[:, :, :-1], dark[:, 1:] == dark[:, :-1]
    assert all((same.mean((1, 2)) > 0.98).all() for same in beside)
