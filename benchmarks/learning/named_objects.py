# SPDX-License-Identifier: Apache-2.0
"""Does a segdepth with roles take the cube that the sentence names, on a task that it was not trained on?

    python -m benchmarks.learning.named_objects --policies \
        outputs/improve/round_2/train/checkpoints/last/pretrained_model

The policy was trained on `place_cube` by `so101-improve`, with roles for the cube and the bowl. Here it acts
on `sort_cubes`, where three cubes and two bowls are visible, with masks and depth of the simulator:

    success  with the sentence of each initial state, at every level
    pairs    at each initial state twice: with its sentence, and with one that names another cube. A pair
             counts if both times the named cube is the first that both fingers grip.

Writes results/learning/named_objects.json.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path

from tqdm import tqdm

from lerobot_env_so101_workbench import SO101SimEnvConfig
from lerobot_env_so101_workbench.demos.takeovers import Actor, PolicyOptions
from lerobot_env_so101_workbench.sim.initial_states import (
    InitialState,
    evaluation_initial_state,
    validation_initial_state,
)
from lerobot_env_so101_workbench.sim.outcome import SUCCESS, EpisodeOutcome
from lerobot_env_so101_workbench.sim.world import World
from lerobot_env_so101_workbench.tasks.sort_cubes import CUBES

from ..lib.report import arguments, percent, save, table
from ..lib.study import as_outcomes

TASK = "sort_cubes"
IMAGES = {"height": 84, "width": 84, "rgb": False, "seg": True, "depth": True}
STATES = {"eval": evaluation_initial_state, "validation": validation_initial_state}
KEYS = ("policy", "states", "level", "measure")


class Runner:
    """A policy on `sort_cubes` at one level."""

    def __init__(self, checkpoint: Path, level: str) -> None:
        env = SO101SimEnvConfig(task=TASK, level=level, **IMAGES)
        self.world, self.cameras = World(TASK, level), env.camera_setup()
        self.actor = Actor(PolicyOptions(checkpoint), env)

    def close(self) -> None:
        self.world.close()

    def run(self, state: InitialState, seed: int) -> tuple[str, str | None]:
        """Return the outcome of an episode, and the first cube that was gripped."""
        self.world.reset(state)
        self.actor.reset(seed)
        outcome, first = EpisodeOutcome(), None
        for _ in range(self.world.task.time_limit_ticks):
            self.world.step(self.actor.act(self.world, self.cameras.capture(self.world)))
            outcome.update(self.world)
            first = first or next((cube.name for cube in CUBES if self.world.is_gripped(cube.name)), None)
            if self.world.is_success() or not self.world.is_finite():
                break
        return outcome.name(self.world), first


def both_sentences(state: InitialState) -> Iterator[InitialState]:
    """Yield an initial state with its own goal, and with the next cube as the target."""
    names = [cube.name for cube in CUBES]
    other = names[(names.index(state.goal.pick) + 1) % len(names)]
    yield state
    yield replace(state, goal=replace(state.goal, pick=other))


def main() -> None:
    levels = ("clean", "distractors", "randomised")
    options = arguments(
        __doc__,
        {"states": tuple(STATES), "levels": levels},
        policies=[""],
        levels=["clean", "randomised"],
        states="eval",
        initial_states=200,
        pairs=200,
    )
    for checkpoint, level in product(map(Path, options.policies), options.levels):
        with closing(Runner(checkpoint, level)) as runner:
            drawn = [STATES[options.states](TASK, level, index) for index in range(options.initial_states)]
            outcomes = [runner.run(state, seed)[0] for seed, state in enumerate(tqdm(drawn, level))]
            case = {"policy": runner.actor.name, "states": options.states, "level": level}
            failures = {name: outcomes.count(name) for name in sorted(set(outcomes) - {SUCCESS})}
            rows = [{**case, "measure": "success", "failures": failures}]
            rows[0]["outcomes"] = as_outcomes(outcome == SUCCESS for outcome in outcomes)
            if level == "clean" and options.pairs:
                hits = [
                    all(runner.run(one, seed)[1] == one.goal.pick for one in both_sentences(state))
                    for seed, state in enumerate(tqdm(drawn[: options.pairs], "pairs"))
                ]
                rows.append({**case, "measure": "pairs", "outcomes": as_outcomes(hits)})
        rows = save("learning/named_objects", rows, KEYS, vars(options))
    print(table([*KEYS, "rate (Wilson 95 %)"], [[*(row[key] for key in KEYS), percent(row)] for row in rows]))


if __name__ == "__main__":
    main()
