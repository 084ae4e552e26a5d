# SPDX-License-Identifier: Apache-2.0
"""Bring the fingertips to the pad behind the post, past its left or right side: a bimodal task."""

import math

import numpy as np

from ..sim.scene import Prop
from .base import Goal, Pose, Task

POST = Prop("post", "post", (0.90, 0.50, 0.10), mass=0.2)
PAD = Prop("pad", "pad", (0.10, 0.55, 0.30), mass=0.05)
BESIDE = ((0.13, 0.34), (0.14, 0.20))  # positions of distractors off both paths: x and |y| [m]
REACHED = 0.02  # m, horizontally
LOW = 0.05  # m
MAX_SHIFT = 0.005  # m that the post may have moved


class PassPost(Task):
    name = "pass_post"
    props = (POST, PAD)
    time_limit_s = 6.0

    def sample_goal(self, rng: np.random.Generator) -> Goal:
        """Draw the side on which the expert passes; neither instruction nor images contain it."""
        return Goal(pick="pad", around="post", side=str(rng.choice(["left", "right"])))

    def instruction(self, goal: Goal) -> str:
        return f"Touch the {goal.pick} behind the {goal.around}."

    def terms(self, world) -> dict[str, float]:
        away = math.dist(world.pinch_point()[:2], world.position(PAD.name)[:2])
        return {
            "reach": 1.0 - math.tanh(away / 0.1),
            "low": float(world.pinch_point()[2] < LOW),
            "post": float(is_standing(world)),
        }

    def is_success(self, world) -> bool:
        pinch, pad = world.pinch_point(), world.position(PAD.name)
        return bool(math.dist(pinch[:2], pad[:2]) < REACHED and pinch[2] < LOW and is_standing(world))

    def _try_poses(self, props: tuple[Prop, ...], rng: np.random.Generator) -> dict[str, Pose] | None:
        x, y = rng.uniform(0.205, 0.235), rng.uniform(-0.032, 0.0)
        turn = rng.uniform(-0.25, 0.25)  # rad, direction from post to pad
        far = rng.uniform(0.080, 0.100)
        pad = (x + far * math.cos(turn), y + far * math.sin(turn))
        yaws = rng.uniform(-np.pi, np.pi, 2)
        placed: dict[str, Pose] = {POST.name: (x, y, yaws[0]), PAD.name: (*pad, yaws[1])}
        others = [prop for prop in props if prop.name not in placed]
        positions = np.linspace(*BESIDE[0], 2 * len(others) + 1)[1::2]  # one x for each
        for prop, position in zip(others, rng.permutation(positions), strict=True):
            side = rng.choice([-1.0, 1.0])
            placed[prop.name] = (position, side * rng.uniform(*BESIDE[1]), rng.uniform(-np.pi, np.pi))
        return placed


def is_standing(world) -> bool:
    """Return whether the post is upright at its initial position."""
    x, y, _ = world.initial_state.poses[POST.name]
    moved = math.dist(world.position(POST.name)[:2], (x, y))
    return bool(moved < MAX_SHIFT and world.rotation(POST.name)[2, 2] > 0.99)
