# SPDX-License-Identifier: Apache-2.0
"""Put the red cube into the blue bowl and release it."""

from typing import ClassVar

import numpy as np

from ..sim.scene import BOWL_HEIGHT, Prop
from .base import Goal, Task, closeness, is_in, lift, reach

RED_CUBE = Prop("red cube", "cube", (0.78, 0.12, 0.10))
BLUE_BOWL = Prop("blue bowl", "bowl", (0.12, 0.22, 0.75), mass=0.12)


class PlaceCube(Task):
    name = "place_cube"
    props: ClassVar[tuple[Prop, ...]] = (RED_CUBE, BLUE_BOWL)
    time_limit_s = 10.0

    def sample_goal(self, rng: np.random.Generator) -> Goal:
        return Goal(pick="red cube", into="blue bowl")

    def instruction(self, goal: Goal) -> str:
        return f"Put the {goal.pick} into the {goal.into}."

    def terms(self, world) -> dict[str, float]:
        cube, bowl = world.goal.pick, world.goal.into
        if is_in(world, cube, bowl):
            return {"reach": 1.0, "lift": 1.0, "carry": 1.0, "release": float(not world.is_touched(cube))}
        return {
            "reach": reach(world, cube),
            "lift": lift(world, cube, BOWL_HEIGHT + 0.02),
            "carry": closeness(world, cube, bowl),
            "release": 0.0,
        }

    def is_success(self, world) -> bool:
        return is_in(world, world.goal.pick, world.goal.into) and not world.is_touched(world.goal.pick)
