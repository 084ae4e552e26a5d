# SPDX-License-Identifier: Apache-2.0
"""Base class of tasks: props and their initial poses, goal and instruction, progress and success."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lerobot_processor_so101.arm import FPS

from ..sim.scene import BOWL_HEIGHT, BOWL_RADIUS, CUBE_HALF, Prop

if TYPE_CHECKING:
    from ..sim.world import World

Pose = tuple[float, float, float]  # x [m], y [m], yaw [rad] on the table

# Initial positions of what is picked: 20 x 22 cm, within reach of a gripper that points down.
PICK_AREA = ((0.14, 0.34), (-0.11, 0.11))
_WIDE_AREA = ((0.13, 0.36), (-0.20, 0.20))
_RADIUS = {"cube": 0.022, "bowl": BOWL_RADIUS + 0.003, "brick": 0.023, "can": 0.015, "ball": 0.017}
_JAW_CLEARANCE = 0.045  # m around a prop that is picked, for the open jaws
_CLEARANCE = 0.01


@dataclass(frozen=True)
class Goal:
    """The goal of an episode.

    Args:
        pick: name of the prop to pick or touch.
        into: name of the prop to put it into, if any.
        around: name of the obstacle, if any.
        side: "left" or "right" of the obstacle, where the demonstrator may choose.
    """

    pick: str
    into: str | None = None
    around: str | None = None
    side: str | None = None


class Task(ABC):
    """One task of the workbench. A subclass is one short file and registers itself in `tasks.TASKS`."""

    name: ClassVar[str]
    props: ClassVar[tuple[Prop, ...]]
    time_limit_s: ClassVar[float]

    @property
    def time_limit_ticks(self) -> int:
        """Time limit in control periods."""
        return round(self.time_limit_s * FPS)

    @abstractmethod
    def sample_goal(self, rng: np.random.Generator) -> Goal: ...

    @abstractmethod
    def instruction(self, goal: Goal) -> str:
        """Return the instruction that the policy is conditioned on."""

    @abstractmethod
    def terms(self, world: World) -> dict[str, float]:
        """Return the named parts of the progress, each in [0, 1]; the progress is their mean."""

    @abstractmethod
    def is_success(self, world: World) -> bool:
        """Return whether the goal is met now; success requires it for several ticks in a row."""

    def area(self, prop: Prop) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the ranges of x and y of a prop's initial position."""
        return PICK_AREA if prop.shape == "cube" else _WIDE_AREA

    def sample_poses(self, props: tuple[Prop, ...], rng: np.random.Generator) -> dict[str, Pose]:
        """Draw a pose for every prop, far enough apart for the open jaws."""
        for _ in range(1000):
            if (poses := self._try_poses(props, rng)) is not None:
                return poses
        raise RuntimeError(f"task {self.name}: no room for {len(props)} props; make the areas larger.")

    def _try_poses(self, props: tuple[Prop, ...], rng: np.random.Generator) -> dict[str, Pose] | None:
        placed: dict[str, Pose] = {}
        for prop in props:
            for _ in range(20):
                x, y = self.area(prop)
                pose = (rng.uniform(*x), rng.uniform(*y), rng.uniform(-np.pi, np.pi))
                others = [other for other in props if other.name in placed]
                if all(_apart(prop, pose, other, placed[other.name]) for other in others):
                    placed[prop.name] = pose
                    break
            else:
                return None
        return placed


def _apart(a: Prop, pose_a: Pose, b: Prop, pose_b: Pose) -> bool:
    clearance = _JAW_CLEARANCE if "cube" in (a.shape, b.shape) else _CLEARANCE
    gap = np.hypot(pose_a[0] - pose_b[0], pose_a[1] - pose_b[1])
    return bool(gap > _RADIUS[a.shape] + _RADIUS[b.shape] + clearance)


def reach(world: World, name: str) -> float:
    """Return 1 with the prop between the fingertips, falling to 0 over some 20 cm."""
    return 1.0 - math.tanh(math.dist(world.pinch_point(), world.position(name)) / 0.1)


def lift(world: World, name: str, height: float) -> float:
    """Return the prop's height above its resting position as a share of `height` [m]."""
    return min(1.0, max(0.0, float(world.position(name)[2] - CUBE_HALF) / height))


def is_in(world: World, cube: str, bowl: str) -> bool:
    """Return whether the cube lies in the bowl: inside the rim, below it, and the bowl upright."""
    offset = world.position(cube) - world.position(bowl)
    inside = math.hypot(offset[0], offset[1]) < BOWL_RADIUS and 0.0 < offset[2] < BOWL_HEIGHT + CUBE_HALF
    return bool(inside and world.rotation(bowl)[2, 2] > 0.9)


def closeness(world: World, cube: str, bowl: str) -> float:
    """Return 1 with the cube above the bowl's centre, falling to 0 over some 20 cm of horizontal distance."""
    offset = world.position(cube) - world.position(bowl)
    return 1.0 - math.tanh(math.hypot(offset[0], offset[1]) / 0.1)
