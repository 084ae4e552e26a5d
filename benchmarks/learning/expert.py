# SPDX-License-Identifier: Apache-2.0
"""Success of the scripted expert per task and level, without disturbances.

    python -m benchmarks.learning.expert

Initial states are those of training seeds 0 to 199.
"""

from concurrent.futures import ProcessPoolExecutor
from itertools import product

import numpy as np

from lerobot_env_so101_workbench.names import LEVELS, TASK_NAMES

from ..lib.report import arguments, percent, save, table
from ..lib.study import as_outcomes


def run(task: str, level: str, seeds: range) -> dict:
    """Let the expert solve a task from the initial states of `seeds`."""
    from lerobot_env_so101_workbench.demos.demonstrator import Demonstrator
    from lerobot_env_so101_workbench.sim.cameras import CameraSetup
    from lerobot_env_so101_workbench.sim.world import World
    from lerobot_processor_so101.arm import FPS

    world = World(task, level)
    expert = Demonstrator(world, CameraSetup(rgb=False), disturbance=0)
    successes, seconds = [], []
    for seed in seeds:
        for _ in expert.episode(seed):
            pass
        successes.append(expert.succeeded)
        if expert.succeeded:
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
