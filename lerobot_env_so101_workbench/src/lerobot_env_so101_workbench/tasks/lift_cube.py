# SPDX-License-Identifier: Apache-2.0
"""Lift one cube five centimetres and hold it there."""

import numpy as np

from ..sim.scene import CUBE_HALF, Prop
from .base import Goal, Task, lift, reach

HEIGHT = 0.05  # m above its resting position


class LiftCube(Task):
    name = "lift_cube"
    props = (Prop("cube", "cube", (0.78, 0.12, 0.10)),)
    time_limit_s = 6.0

    def sample_goal(self, rng: np.random.Generator) -> Goal:
        return Goal(pick="cube")

    def instruction(self, goal: Goal) -> str:
        return "Lift the cube."

    def terms(self, world) -> dict[str, float]:
        return {"reach": reach(world, "cube"), "lift": lift(world, "cube", HEIGHT)}

    def is_success(self, world) -> bool:
        return bool(world.position("cube")[2] > HEIGHT + CUBE_HALF)
