# SPDX-License-Identifier: Apache-2.0
"""Initial states of episodes as plain numbers: joint positions, poses of the props, goal and variation.

Three sets come from random streams of their own, so that no seed of one reproduces a state of another:

- training: drawn from a seed, any number of them;
- validation: 200 for every task and level, drawn when needed; for every choice of options;
- evaluation: 200 for every task and level, frozen in `starts/<task>.json`; for published numbers only. A
  change of the sampling code does not affect them. Validation states are not frozen, because no comparison
  outlives the version in which it was made.
"""

import dataclasses
import json
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import numpy as np

from lerobot_processor_so101 import arm

from ..names import LEVELS, check_level, check_task
from ..tasks import TASKS, Goal
from ..tasks.base import Pose
from . import variation
from .scene import DISTRACTORS, Prop
from .variation import Variation

N_EVALUATION = 200  # frozen initial states per task and level
N_VALIDATION = 200  # initial states per task and level
_TRAINING_STREAM, _EVALUATION_STREAM, _VALIDATION_STREAM = 0, 1, 2
_ARM_NOISE = 3.0  # deg (and gripper units): largest initial distance of a joint from HOME


@dataclass(frozen=True)
class InitialState:
    """Everything random about an episode before its first action.

    Args:
        joints: joint positions (6,) in LeRobot's units.
        poses: pose of every prop by name.
        goal: what the instruction asks for.
        variation: appearance and physics; None for those of the scene.
    """

    joints: tuple[float, ...]
    poses: dict[str, Pose]
    goal: Goal
    variation: Variation | None = None

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> Self:
        values = _rounded(data)
        varied = values["variation"] and Variation(**values["variation"])
        return cls(values["joints"], values["poses"], Goal(**values["goal"]), varied)


def _rounded(value: Any) -> Any:
    """Round to four decimals, 0.1 mm, for a legible file, and make lists tuples."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_rounded, value))
    return round(float(value), 4) if isinstance(value, float) else value


def props_of(task: str, level: str) -> tuple[Prop, ...]:
    """Return the props of a task at a level; `clean` has no distractors."""
    return TASKS[task].props + (() if level == "clean" else DISTRACTORS)


def training_initial_state(task: str, level: str, seed: int) -> InitialState:
    """Draw the initial state of a training seed."""
    return _draw(task, level, seed, _TRAINING_STREAM)


def validation_initial_state(task: str, level: str, index: int) -> InitialState:
    """Draw validation state `index` (modulo 200) of a task and level."""
    return _draw(task, level, index % N_VALIDATION, _VALIDATION_STREAM)


def evaluation_initial_state(task: str, level: str, index: int) -> InitialState:
    """Return frozen initial state `index` (modulo 200) of a task and level."""
    return evaluation_initial_states(task, level)[index % N_EVALUATION]


@cache
def evaluation_initial_states(task: str, level: str) -> tuple[InitialState, ...]:
    """Return all frozen initial states of a task and level, in order.

    Raises:
        ValueError: if the task or level is unknown.
    """
    check_task(task)
    check_level(level)
    table = json.loads(files("lerobot_env_so101_workbench").joinpath("starts", f"{task}.json").read_text())
    return tuple(InitialState.from_json(entry) for entry in table[level])


def _draw(task: str, level: str, seed: int, stream: int) -> InitialState:
    check_task(task)
    check_level(level)
    if seed < 0:
        raise ValueError(f"seed: found {seed}, expected 0 or more.")
    rng = np.random.default_rng([stream, zlib.crc32(task.encode()), LEVELS.index(level), seed])
    props = props_of(task, level)
    drawn = InitialState(
        joints=tuple(arm.HOME + rng.uniform(-_ARM_NOISE, _ARM_NOISE, len(arm.JOINTS))),
        poses=TASKS[task].sample_poses(props, rng),
        goal=TASKS[task].sample_goal(rng),
        variation=variation.sample(props, rng) if level == "randomised" else None,
    )
    return InitialState.from_json(drawn.to_json())


def freeze(folder: Path) -> None:
    """Write the evaluation initial states of every task without a file; done once, when a task is added.

    An existing file is never overwritten: published results refer to it.
    """
    for task in TASKS:
        path = folder / f"{task}.json"
        if path.exists():
            continue
        levels = []
        for level in LEVELS:
            drawn = (_draw(task, level, seed, _EVALUATION_STREAM) for seed in range(N_EVALUATION))
            rows = ",\n".join(json.dumps(state.to_json()) for state in drawn)
            levels.append(f'"{level}": [\n{rows}\n]')
        path.write_text("{" + ",\n".join(levels) + "}\n")
