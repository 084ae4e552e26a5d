# SPDX-License-Identifier: Apache-2.0
"""What an episode's failure was, and the log that environments write."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_env_so101_workbench.sim.cameras import CameraSetup
from lerobot_env_so101_workbench.sim.expert import OPEN, Expert
from lerobot_env_so101_workbench.sim.initial_states import validation_initial_state
from lerobot_env_so101_workbench.sim.outcome import EpisodeOutcome
from lerobot_env_so101_workbench.tasks.base import Goal
from lerobot_processor_so101.arm import GRIPPER


def play(world, ticks, act) -> EpisodeOutcome:
    """Begin an episode of `place_cube` and step it with `act(tick)`."""
    world.reset(validation_initial_state("place_cube", "clean", 0))
    outcome = EpisodeOutcome()
    for tick in range(ticks):
        world.step(act(tick))
        outcome.update(world)
    return outcome


def test_an_arm_that_holds_still_never_grips(world_of):
    world = world_of("place_cube")
    assert play(world, 5, lambda tick: world.joints()).name(world) == "never gripped"


def test_the_expert_succeeds_and_without_time_it_is_the_time(world_of):
    world = world_of("place_cube")
    expert = Expert(world)
    gripped = []

    def act(tick: int) -> np.ndarray:
        gripped.append(world.is_gripped("red cube"))
        return expert.decide().action

    outcome = play(world, world.task.time_limit_ticks, act)
    assert outcome.name(world) == "success"
    while_held = gripped.index(True) + 10
    assert play(world, while_held, act).name(world) == "time out"


def test_opened_jaws_drop_the_cube(world_of):
    world = world_of("place_cube")
    expert = Expert(world)
    held = 0

    def act(tick: int) -> np.ndarray:
        nonlocal held
        action = expert.decide().action
        held += world.is_gripped("red cube")
        if held >= 10:  # lift it a little, then let go and stay
            action = world.joints()
            action[GRIPPER] = OPEN
        return action

    outcome = play(world, 150, act)
    assert outcome.name(world) == "dropped"


@pytest.mark.parametrize(
    ("gripped", "finite", "expected"),
    [
        ({"white bowl"}, True, "wrong object"),
        ({"blue bowl"}, True, "never gripped"),  # where the cube belongs
        ({"ball", "red cube"}, True, "time out"),
        (set(), True, "never gripped"),
        (set(), False, "diverged"),
    ],
)
def test_a_failure_is_named_after_what_was_gripped(gripped, finite, expected):
    names = ("red cube", "ball", "blue bowl", "white bowl")
    world = SimpleNamespace(
        props=[SimpleNamespace(name=name) for name in names],
        goal=Goal(pick="red cube", into="blue bowl"),
        is_gripped=lambda name: name in gripped,
        is_finite=lambda: finite,
        is_success=lambda: False,
    )
    outcome = EpisodeOutcome()
    for _ in range(3):
        outcome.update(world)
    assert outcome.name(world) == expected


def test_every_finished_episode_is_logged_with_its_seed(tmp_path):
    log = tmp_path / "new" / "episodes.jsonl"
    env = WorkbenchEnv("lift_cube", cameras=CameraSetup(rgb=False), renderer="ray", episode_log=log)
    expert = Expert(env.world)
    for seed, acts in ((7, True), (8, False)):
        env.reset(seed=seed)
        done = False
        while not done:
            action = expert.decide().action if acts else env.world.joints()
            *_, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
    env.reset(seed=9)
    env.step(env.world.joints())  # not finished
    env.close()
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["seed"], row["outcome"]) for row in rows] == [(7, "success"), (8, "never gripped")]
    assert rows[1]["ticks"] == 180
