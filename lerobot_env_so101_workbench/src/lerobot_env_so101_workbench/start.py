# SPDX-License-Identifier: Apache-2.0
"""How an episode begins: joint positions, poses of the props, goal and variation, as plain numbers.

Training starts are drawn from a seed. Evaluation starts are frozen: 200 for every task and level, stored in
`starts/<task>.json`, drawn once from a random stream of their own, so that no training seed can reproduce one
and a change of the sampling code cannot move them.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from . import arm, variation
from .names import LEVELS, check_level, check_task
from .scene import DISTRACTORS, Prop
from .tasks import TASKS, Goal
from .tasks.base import Pose
from .variation import Variation

N_EVAL_STARTS = 200
_TRAIN_STREAM, _EVAL_STREAM = 0, 1
_ARM_NOISE = 3.0  # deg (and gripper units): how far from home an episode may begin


@dataclass(frozen=True)
class Start:
    """Everything that is random about an episode before its first action."""

    joints: tuple[float, ...]  # LeRobot units
    poses: dict[str, Pose]
    goal: Goal
    variation: Variation | None = None

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> Start:
        varied = data["variation"]
        if varied is not None:
            pairs = {key: _tuples(value) for key, value in varied.items()}
            varied = Variation(**pairs)
        return cls(
            joints=tuple(data["joints"]),
            poses={name: tuple(pose) for name, pose in data["poses"].items()},
            goal=Goal(**data["goal"]),
            variation=varied,
        )


def _tuples(value):
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _rounded(value):
    """Four decimals: 0.1 mm, and a file that a person can read."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(float(value), 4) if isinstance(value, float) else value


def props_of(task: str, level: str) -> tuple[Prop, ...]:
    """Props of a task at a level: `clean` has only what the task needs."""
    return TASKS[task].props + (() if level == "clean" else DISTRACTORS)


def training_start(task: str, level: str, seed: int) -> Start:
    """The start that `seed` stands for: the same seed gives the same start."""
    return _draw(task, level, seed, _TRAIN_STREAM)


def evaluation_start(task: str, level: str, number: int) -> Start:
    """Frozen start `number` (modulo 200) of a task and level."""
    return evaluation_starts(task, level)[number % N_EVAL_STARTS]


@cache
def evaluation_starts(task: str, level: str) -> tuple[Start, ...]:
    """All frozen starts of a task and level, in order.

    Raises:
        ValueError: unknown task or level.
    """
    check_task(task), check_level(level)
    table = json.loads(files(__package__).joinpath("starts", f"{task}.json").read_text())
    return tuple(Start.from_json(entry) for entry in table[level])


def _draw(task: str, level: str, seed: int, stream: int) -> Start:
    check_task(task), check_level(level)
    if seed < 0:
        raise ValueError(f"seed: found {seed}, expected 0 or more.")
    rng = np.random.default_rng([stream, zlib.crc32(task.encode()), LEVELS.index(level), seed])
    props = props_of(task, level)
    drawn = Start(
        joints=tuple(arm.HOME + rng.uniform(-_ARM_NOISE, _ARM_NOISE, len(arm.JOINTS))),
        poses=TASKS[task].sample_poses(props, rng),
        goal=TASKS[task].sample_goal(rng),
        variation=variation.sample(props, rng) if level == "randomised" else None,
    )
    return Start.from_json(_rounded(drawn.to_json()))


def freeze(folder: Path) -> None:
    """Write the evaluation starts of every task that has none yet; done once, when a task is added.

    A file that is there is never written again: published results refer to it.
    """
    for task in TASKS:
        path = folder / f"{task}.json"
        if path.exists():
            continue
        table = {
            level: [
                _rounded(_draw(task, level, seed, _EVAL_STREAM).to_json()) for seed in range(N_EVAL_STARTS)
            ]
            for level in LEVELS
        }
        levels = (f'"{level}": [\n' + ",\n".join(map(json.dumps, table[level])) + "\n]" for level in LEVELS)
        path.write_text("{" + ",\n".join(levels) + "}\n")
