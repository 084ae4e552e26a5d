# SPDX-License-Identifier: Apache-2.0
"""Is it sight that lifts the cube? The same network trained with and without it, on the same demonstrations.

    .venv/bin/python -m benchmarks.sight

Stock commands only. Every arm is evaluated on the same 200 frozen starts. About 25 minutes on two cores with one
seed; stopped and started again, it goes on where it was. Writes results/sight.json.
"""

import argparse
import json
from itertools import product
from pathlib import Path

from examples.demo import PICTURES, commands, run

from .report import paired_gain, percent, rate, save, table


def train_and_evaluate(out: Path, dataset: Path, blind: bool, seed: int, steps: int, starts: int) -> dict:
    """One arm of the comparison; `dataset` is shared by all of them."""
    out.mkdir(parents=True, exist_ok=True)
    steps_by_name = commands(out, episodes=0, steps=steps, starts=starts)
    train, checkpoint = steps_by_name["train"]
    train = [f"--dataset.root={dataset}" if part.startswith("--dataset.root") else part for part in train]
    seconds = run(
        "train", [*train, f"--policy.blind={str(blind).lower()}", f"--seed={seed}"], checkpoint, out
    )
    run("evaluate", *steps_by_name["evaluate"], out)
    metrics = json.loads((out / "eval" / "eval_info.json").read_text())["per_task"][0]["metrics"]
    return {
        "arm": "blind" if blind else "sighted",
        "seed": seed,
        **rate(sum(metrics["successes"]), len(metrics["successes"])),
        "train_s": seconds,
        "per_start": [int(success) for success in metrics["successes"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/sight"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--starts", type=int, default=200)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    demos, done = commands(args.out, args.episodes, args.steps, args.starts)["demonstrate"]
    run("demonstrate", demos, done, args.out)
    rows = [
        train_and_evaluate(
            args.out / f"{'blind' if blind else 'sighted'}-{seed}",
            args.out / "dataset",
            blind,
            seed,
            args.steps,
            args.starts,
        )
        for seed, blind in product(range(args.seeds), (False, True))
    ]
    gain = paired_gain(
        *([row["per_start"] for row in rows if row["arm"] == arm] for arm in ("sighted", "blind"))
    )
    print(table(["arm", "seed", "success (Wilson 95 %)"], [[r["arm"], r["seed"], percent(r)] for r in rows]))
    print(f"gain by sight, paired over starts: {gain}")
    settings = {"episodes": args.episodes, "steps": args.steps, "batch": 32, **PICTURES}
    print("written to", save("sight", {"settings": settings, "rows": rows, "paired": gain}))


if __name__ == "__main__":
    main()
