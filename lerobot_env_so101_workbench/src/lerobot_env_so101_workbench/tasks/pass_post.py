# SPDX-License-Identifier: Apache-2.0
"""Bring the finger tips to the pad behind the post, left or right of it: two ways, and nothing between them."""

import math

import numpy as np

from ..scene import Prop
from .base import Goal, Pose, Task

POST = Prop("post", "post", (0.90, 0.50, 0.10), mass=0.2)
PAD = Prop("pad", "pad", (0.10, 0.55, 0.30), mass=0.05)
BESIDE = ((0.13, 0.34), (0.14, 0.20))  # where distractors lie: x and |y| [m], out of both ways
REACHED = 0.02  # m, horizontally
LOW = 0.05  # m
STANDS = 0.005  # m that the post may have moved


class PassPost(Task):
    name = "pass_post"
    props = (POST, PAD)
    time_limit_s = 6.0

    def sample_goal(self, rng: np.random.Generator) -> Goal:
        """The expert goes round by one side or the other; no sentence and no picture tells which."""
        return Goal(pick="pad", around="post", side=str(rng.choice(["left", "right"])))

    def instruction(self, goal: Goal) -> str:
        return f"Touch the {goal.pick} behind the {goal.around}."

    def terms(self, world) -> dict[str, float]:
        away = math.dist(world.pinch_point()[:2], world.position(PAD.name)[:2])
        return {
            "reach": 1.0 - math.tanh(away / 0.1),
            "low": float(world.pinch_point()[2] < LOW),
            "post": float(stands(world)),
        }

    def is_success(self, world) -> bool:
        pinch, pad = world.pinch_point(), world.position(PAD.name)
        return bool(math.dist(pinch[:2], pad[:2]) < REACHED and pinch[2] < LOW and stands(world))

    def _try_poses(self, props: tuple[Prop, ...], rng: np.random.Generator) -> dict[str, Pose] | None:
        x, y = rng.uniform(0.205, 0.235), rng.uniform(-0.032, 0.0)
        turn = rng.uniform(-0.25, 0.25)  # of the line from post to pad
        far = rng.uniform(0.080, 0.100)
        pad = (x + far * math.cos(turn), y + far * math.sin(turn))
        yaws = rng.uniform(-np.pi, np.pi, 2)
        placed: dict[str, Pose] = {POST.name: (x, y, yaws[0]), PAD.name: (*pad, yaws[1])}
        others = [prop for prop in props if prop.name not in placed]
        places = np.linspace(*BESIDE[0], 2 * len(others) + 1)[1::2]  # each has a stretch of its own
        for prop, place in zip(others, rng.permutation(places), strict=True):
            side = rng.choice([-1.0, 1.0])
            placed[prop.name] = (place, side * rng.uniform(*BESIDE[1]), rng.uniform(-np.pi, np.pi))
        return placed


def stands(world) -> bool:
    """Whether the post is where it was, upright."""
    x, y, _ = world.start.poses[POST.name]
    moved = math.dist(world.position(POST.name)[:2], (x, y))
    return bool(moved < STANDS and world.rotation(POST.name)[2, 2] > 0.99)
