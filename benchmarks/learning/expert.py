# SPDX-License-Identifier: Apache-2.0
"""Success of the scripted expert per task and level, without disturbances.

    python -m benchmarks.learning.expert

Initial states are those of training seeds 0 to 199. Minutes on two cores; writes
results/learning/expert.json.
"""

from concurrent.futures import ProcessPoolExecutor
from itertools import product

import numpy as np

from lerobot_env_so101_workbench.names import LEVELS, TASK_NAMES

from ..lib.report import arguments, percent, save, table
from ..lib.study import as_outcomes


def run(task: str, level: str, seeds: range) -> dict:
    """Let the expert solve a task from the initial states of `seeds`."""
    from lerobot_env_so101_workbench.sim.expert import Expert
    from lerobot_env_so101_workbench.sim.initial_states import training_initial_state
    from lerobot_env_so101_workbench.sim.world import World
    from lerobot_processor_so101.arm import FPS

    world = World(task, level)
    expert = Expert(world)
    successes, seconds = [], []
    for seed in seeds:
        world.reset(training_initial_state(task, level, seed))
        for _ in range(world.task.time_limit_ticks):
            world.step(expert.decide().action)
            if world.is_success() or not world.is_finite():
                break
        successes.append(world.is_success())
        if successes[-1]:
            seconds.append(world.ticks / FPS)
    median = round(float(np.median(seconds)), 2) if seconds else None
    return {"task": task, "level": level, "outcomes": as_outcomes(successes), "median_s": median}


def main() -> None:
    options = arguments(__doc__, seeds=200, workers=2)
    cases = list(product(TASK_NAMES, LEVELS))
    with ProcessPoolExecutor(options.workers) as pool:
        rows = list(pool.map(run, *zip(*cases, strict=True), [range(options.seeds)] * len(cases)))
    rows = save("learning/expert", rows)
    cells = [[r["task"], r["level"], percent(r), f"{r['median_s']} s"] for r in rows]
    print(table(["task", "level", "success (Wilson 95 %)", "median time"], cells))


if __name__ == "__main__":
    main()
