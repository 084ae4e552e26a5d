# SPDX-License-Identifier: Apache-2.0
"""Does a segdepth with roles take the cube that the sentence names, on a task that it was not trained on?

    python -m benchmarks.learning.named_objects --policies \
        outputs/improve/round_2/train/checkpoints/last/pretrained_model

The policy was trained on `place_cube` by `so101-improve`, with roles for the cube and the bowl, or on
`sort_cubes` by `benchmarks.learning.segdepth`. Here it acts on `sort_cubes`, where three cubes and two bowls
are visible, with masks and depth of the simulator or, if it has a segmenter, from RGB:

    success  with the sentence of each initial state, at every level
    pairs    at each initial state twice: with its sentence, and with one that names another cube. A pair
             counts if both times the named cube is the first that both fingers grip. At the first level only.
"""

from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path

from tqdm import tqdm

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
from .segdepth import LEVELS

TASK = "sort_cubes"
NAMES = [cube.name for cube in CUBES]
STATES = {"eval": evaluation_initial_state, "validation": validation_initial_state}
KEYS = ("policy", "states", "level", "measure")


def run(actor: Actor, world: World, state: InitialState, seed: int) -> tuple:
    """Return the outcome of an episode, and the first cube that was gripped, if any."""
    outcome, first = EpisodeOutcome(), None
    world.reset(state)
    actor.reset(seed)
    for _ in range(world.task.time_limit_ticks):
        world.step(actor.act(world))
        outcome.update(world)
        first = first or next(filter(world.is_gripped, NAMES), None)
        if world.is_success() or not world.is_finite():
            break
    return outcome.name(world), first


def grips_named(case: tuple, state: InitialState, seed: int) -> bool:
    """Return whether the named cube is gripped first: that of the state, and then the next cube."""
    other = NAMES[(NAMES.index(state.goal.pick) + 1) % len(NAMES)]
    both = (state, replace(state, goal=replace(state.goal, pick=other)))
    return all(run(*case, one, seed)[1] == one.goal.pick for one in both)


def main() -> None:
    defaults = {"policies": [""], "levels": ["clean", "randomised"], "states": "eval"}
    choices = {"states": STATES, "levels": LEVELS}
    options = arguments(__doc__, choices, **defaults, initial_states=200, pairs=200)
    for checkpoint, level in product(map(Path, options.policies), options.levels):
        scene = LEVELS[level]
        actor = Actor(PolicyOptions(checkpoint), TASK, scene["level"])
        count = max(options.initial_states, options.pairs)
        drawn = [STATES[options.states](TASK, scene["level"], index) for index in range(count)]
        row = {"policy": actor.name, "states": options.states, "level": level}
        with closing(World(TASK, **scene)) as world:
            case = (actor, world)
            rows = []
            if options.initial_states:
                states = enumerate(tqdm(drawn[: options.initial_states], level))
                found = [run(*case, state, seed)[0] for seed, state in states]
                failures = {name: found.count(name) for name in sorted(set(found) - {SUCCESS})}
                outcomes = as_outcomes(name == SUCCESS for name in found)
                rows.append({**row, "measure": "success", "failures": failures, "outcomes": outcomes})
            if level == options.levels[0] and options.pairs:
                states = enumerate(tqdm(drawn[: options.pairs], "pairs"))
                outcomes = as_outcomes(grips_named(case, state, seed) for seed, state in states)
                rows.append({**row, "measure": "pairs", "outcomes": outcomes})
        rows = save("learning/named_objects", rows, KEYS, vars(options))
    print(table([*KEYS, "rate (Wilson 95 %)"], [[*(row[key] for key in KEYS), percent(row)] for row in rows]))


if __name__ == "__main__":
    main()
