# SPDX-License-Identifier: Apache-2.0
"""Fixtures: shared worlds, the OpenGL backend of this machine, and LeRobot's loggers."""

import functools
import logging
import os

import pytest

from lerobot_env_so101_workbench.names import LEVELS, TASK_NAMES
from lerobot_env_so101_workbench.sim import rendering
from lerobot_env_so101_workbench.sim.world import World

SCENES = [(task, level) for task in TASK_NAMES for level in LEVELS]


@pytest.fixture(scope="session")
def world_of():
    """`world_of(task, level)`: a world drawn by the ray-caster. Tests share it and reset it first."""
    make = functools.cache(lambda task="lift_cube", level="clean": World(task, level, renderer="ray"))
    return lambda task="lift_cube", level="clean": make(task, level)


@pytest.fixture(scope="session")
def gl() -> str:
    """Name of the OpenGL backend that works here; `MUJOCO_GL` chooses it as it does for users."""
    asked = rendering._MUJOCO_GL.get(os.environ.get("MUJOCO_GL", "").strip().lower())
    name = asked or rendering._automatic_backend()
    if name == "ray":
        pytest.skip("no EGL, OSMesa or native OpenGL library is installed, or MUJOCO_GL disables it")
    world = World("lift_cube", renderer=name)
    try:
        return world.renderer and name
    except RuntimeError as error:
        pytest.skip(str(error))
    finally:
        world.close()


@pytest.fixture
def command_loggers():
    """Restore the loggers that a console command sets."""
    root, package = logging.getLogger(), logging.getLogger("lerobot_env_so101_workbench")
    loggers = [
        (logger, logger.handlers[:], logger.level) for logger in (root, package, logging.getLogger("lerobot"))
    ]
    yield
    for logger, before, level in loggers:
        logger.handlers[:] = before
        logger.setLevel(level)


def pytest_generate_tests(metafunc):
    """Run every test that takes `scene_name` for each task at each level."""
    if "scene_name" in metafunc.fixturenames:
        metafunc.parametrize("scene_name", SCENES, ids=["-".join(scene) for scene in SCENES])
