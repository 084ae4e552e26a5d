# SPDX-License-Identifier: Apache-2.0
"""Put the cube named in the instruction into the bowl named there, and no other cube into any bowl."""

import numpy as np

from ..sim.scene import Prop
from .base import PICK_AREA, Goal, is_in
from .place_cube import BLUE_BOWL, RED_CUBE, PlaceCube

CUBES = (
    RED_CUBE,
    Prop("green cube", "cube", (0.15, 0.60, 0.20)),
    Prop("yellow cube", "cube", (0.90, 0.75, 0.10)),
)
BOWLS = (BLUE_BOWL, Prop("white bowl", "bowl", (0.92, 0.92, 0.90), mass=0.12))


class SortCubes(PlaceCube):
    name = "sort_cubes"
    props = (*CUBES, *BOWLS)

    def sample_goal(self, rng: np.random.Generator) -> Goal:
        return Goal(pick=CUBES[rng.integers(len(CUBES))].name, into=BOWLS[rng.integers(len(BOWLS))].name)

    def area(self, prop: Prop):
        """Place the bowls to the left and right of the cubes, in either order."""
        return PICK_AREA if prop.shape == "cube" else ((0.16, 0.30), (-0.22, 0.22))

    def terms(self, world) -> dict[str, float]:
        return super().terms(world) | {"others_left": float(not self._misplaced(world))}

    def is_success(self, world) -> bool:
        return super().is_success(world) and not self._misplaced(world)

    def _misplaced(self, world) -> bool:
        return any(is_in(world, c.name, b.name) for c in CUBES for b in BOWLS if c.name != world.goal.pick)
