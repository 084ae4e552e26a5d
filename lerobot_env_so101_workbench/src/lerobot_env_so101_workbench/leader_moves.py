# SPDX-License-Identifier: Apache-2.0
"""What moves a virtual leader arm: the scripted expert or a recording. Each is an iterator of poses (6,) in LeRobot
units, one per tick of 1/30 s."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .arm import ACTION_NAMES, FPS, GRIPPER, HOME, to_radians
from .expert import Expert
from .scene import SUBSTEPS
from .virtual_joints import Hand
from .world import World

_AT_HOME = 3.0  # deg


def expert_moves(world: World) -> Iterator[np.ndarray]:
    """Work on the task, hold the result for a second or give up in time, go home; again and again."""
    expert = Expert(world)
    start, worked, held, rested = world.start, 0, 0, 0
    while True:
        # At home the table is laid anew; where it is not, because the arm has not been away, begin again.
        if world.start is not start or rested > FPS:
            start, worked, held, rested = world.start, 0, 0, 0
        worked += 1
        held += world.is_success() or held > 0
        if held < FPS and worked < world.task.time_limit_ticks:
            yield expert.decide().action
        else:
            rested += np.abs(world.joints() - HOME)[:GRIPPER].max() < _AT_HOME
            yield expert.go_home().action


def recorded_moves(actions: np.ndarray) -> Iterator[np.ndarray]:
    """Actions (T, 6) in LeRobot units at 30 Hz, again and again, with two seconds for the way back."""
    pause = np.linspace(actions[-1], actions[0], 2 * FPS)
    while True:
        yield from actions
        yield from pause


def read_actions(root: Path, episode: int) -> np.ndarray:
    """Actions (T, 6) of one episode of a LeRobotDataset, in LeRobot units and at 30 Hz.

    Raises:
        FileNotFoundError: there is no dataset in `root`.
        ValueError: it has no such episode, or its actions are not those of an SO-101.
    """
    from lerobot.datasets import LeRobotDataset

    if not (root / "meta" / "info.json").is_file():
        raise FileNotFoundError(f"--recording: found no LeRobotDataset in {root}, expected its folder.")
    dataset = LeRobotDataset("local/recording", root=root)
    names = dataset.features["action"]["names"]
    if list(names) != list(ACTION_NAMES):
        raise ValueError(f"--recording: found actions {names}, expected {list(ACTION_NAMES)}.")
    if not 0 <= episode < dataset.num_episodes:
        raise ValueError(f"--episode: found {episode}, expected 0 to {dataset.num_episodes - 1}.")
    rows = dataset.hf_dataset.with_format(None).select_columns(["action", "episode_index"])
    actions = np.array([row["action"] for row in rows if row["episode_index"] == episode], dtype=np.float64)
    ticks = np.arange(0.0, len(actions) / dataset.fps, 1.0 / FPS)
    return actions[np.minimum((ticks * dataset.fps).astype(int), len(actions) - 1)]


def by_hand(moves: Iterator[np.ndarray]) -> Hand:
    """The hand that makes `moves`, evenly between ticks."""
    begin = to_radians(next(moves))
    for move in moves:
        end = to_radians(move)
        for i in range(1, SUBSTEPS + 1):
            yield begin + (end - begin) * (i / SUBSTEPS)
        begin = end
