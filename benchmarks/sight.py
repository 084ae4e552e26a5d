# SPDX-License-Identifier: Apache-2.0
"""Is it sight that lifts the cube? The same network trained with and without it, on the same demonstrations.

    python -m benchmarks.sight

Stock commands only. Every arm is evaluated on the same 200 frozen starts. About 25 minutes on two cores with one
seed; stopped and started again, it goes on where it was. Writes results/sight.json.
"""

import argparse
from itertools import product
from pathlib import Path

from examples.demo import PICTURES

from .report import save
from .study import Study, compare, row

TASK = "lift_cube"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/sight"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--starts", type=int, default=200)
    options = parser.parse_args()
    study = Study(options.out, options)
    pictures = [f"--{name}={value}" for name, value in PICTURES.items()]
    root = study.demonstrate(
        "demonstrations", [f"--task={TASK}", f"--episodes={options.episodes}", "--video=false", *pictures]
    )
    env = [f"--env.{name}={value}" for name, value in PICTURES.items()]
    env += [f"--env.task={TASK}", f"--eval.n_episodes={options.starts}", "--eval.batch_size=1"]
    rows = []
    for seed, blind in product(range(options.seeds), ("false", "true")):
        arm = "blind" if blind == "true" else "sighted"
        training = ["--policy.type=segdepth", f"--policy.blind={blind}", f"--seed={seed}", "--batch_size=32"]
        training += [
            f"--dataset.root={root}",
            "--dataset.repo_id=local/sight",
            f"--save_freq={options.steps}",
        ]
        checkpoint = study.train(f"{arm} {seed}", training, options.steps)
        successes = study.evaluate(f"{arm} {seed}", checkpoint, env)
        rows.append(row(successes, task=TASK, arm=arm, seed=seed))
    gains = compare(rows, ("task",), [("sighted", "blind")])
    settings = {"episodes": options.episodes, "steps": options.steps, "batch": 32, **PICTURES}
    print("written to", save("sight", {"settings": settings, "rows": rows, "paired": gains}))


if __name__ == "__main__":
    main()
