# SPDX-License-Identifier: Apache-2.0
"""The tasks by name."""

from .base import Goal, Task
from .lift_cube import LiftCube
from .pass_post import PassPost
from .place_cube import PlaceCube
from .sort_cubes import SortCubes

TASKS: dict[str, Task] = {task.name: task for task in (LiftCube(), PlaceCube(), SortCubes(), PassPost())}

__all__ = ["TASKS", "Goal", "LiftCube", "PassPost", "PlaceCube", "SortCubes", "Task"]
