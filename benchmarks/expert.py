# SPDX-License-Identifier: Apache-2.0
"""How often the scripted demonstrator succeeds, without disturbances, per task and level.

    .venv/bin/python -m benchmarks.expert

Starts are those of training seeds 0 to 199. Minutes on two cores; writes results/expert.json.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import numpy as np

from lerobot_env_so101_workbench.names import LEVELS, TASK_NAMES

from .report import percent, rate, save, table


def run(task: str, level: str, seeds: range) -> dict:
    """Let the expert work through the starts of `seeds`."""
    from lerobot_env_so101_workbench.arm import FPS
    from lerobot_env_so101_workbench.expert import Expert
    from lerobot_env_so101_workbench.start import training_start
    from lerobot_env_so101_workbench.world import World

    world = World(task, level)
    expert = Expert(world)
    seconds, failed = [], []
    for seed in seeds:
        world.reset(training_start(task, level, seed))
        for _ in range(world.task.time_limit_ticks):
            world.step(expert.decide().action)
            if world.is_success() or not world.is_finite():
                break
        if world.is_success():
            seconds.append(world.ticks / FPS)
        else:
            failed.append(seed)
    return {
        "task": task,
        "level": level,
        **rate(len(seconds), len(seeds)),
        "median_s": round(float(np.median(seconds)), 2) if seconds else None,
        "failed_seeds": failed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with ProcessPoolExecutor(args.workers) as pool:
        jobs = [
            pool.submit(run, task, level, range(args.seeds)) for task, level in product(TASK_NAMES, LEVELS)
        ]
        rows = [job.result() for job in jobs]
    lines = [[r["task"], r["level"], percent(r), f"{r['median_s']} s"] for r in rows]
    print(table(["task", "level", "success (Wilson 95 %)", "median time"], lines))
    print("written to", save("expert", {"rows": rows}))


if __name__ == "__main__":
    main()
