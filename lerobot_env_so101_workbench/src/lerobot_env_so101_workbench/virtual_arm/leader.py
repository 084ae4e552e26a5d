# SPDX-License-Identifier: Apache-2.0
"""Moves of a virtual leader arm, by the expert or a recording: a pose (6,) in LeRobot's units per tick."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lerobot_processor_so101.arm import ACTION_NAMES, FPS, GRIPPER, HOME, to_radians

from ..sim.expert import Expert
from ..sim.scene import SUBSTEPS
from ..sim.world import World
from .joints import Hand

_AT_HOME = 3.0  # deg


def expert_moves(world: World) -> Iterator[np.ndarray]:
    """Repeat: do the task, hold the result for a second or give up at the time limit, home."""
    expert = Expert(world)
    state, worked, held, rested = world.initial_state, 0, 0, 0
    while True:
        # Start again after a reset of the scene, or after a second at home without one.
        if world.initial_state is not state or rested > FPS:
            state, worked, held, rested = world.initial_state, 0, 0, 0
        worked += 1
        held += world.is_success() or held > 0
        if held < FPS and worked < world.task.time_limit_ticks:
            yield expert.decide().action
        else:
            rested += np.abs(world.joints() - HOME)[:GRIPPER].max() < _AT_HOME
            yield expert.go_home().action


def recorded_moves(actions: np.ndarray) -> Iterator[np.ndarray]:
    """Repeat actions (T, 6) in LeRobot's units at 30 Hz, with two seconds to return to the first one."""
    back = np.linspace(actions[-1], actions[0], 2 * FPS)
    while True:
        yield from actions
        yield from back


def read_actions(root: Path, episode: int) -> np.ndarray:
    """Read the actions (T, 6) of one episode of a LeRobotDataset, in LeRobot's units and at 30 Hz.

    Raises:
        FileNotFoundError: if there is no dataset in `root`.
        ValueError: if it has no such episode, or its actions are not those of an SO-101.
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


def interpolated(moves: Iterator[np.ndarray]) -> Hand:
    """Interpolate `moves` between ticks to poses [rad] per physics step."""
    begin = to_radians(next(moves))
    for move in moves:
        end = to_radians(move)
        for i in range(1, SUBSTEPS + 1):
            yield begin + (end - begin) * (i / SUBSTEPS)
        begin = end
