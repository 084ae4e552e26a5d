# SPDX-License-Identifier: Apache-2.0
"""What takeovers by the expert are worth, against as many frames of plain demonstrations.

    python -m benchmarks.learning.takeovers
    python -m benchmarks.learning.takeovers --variants relabelled late early --rounds 1 --states validation
    python -m benchmarks.learning.takeovers --variants plain --rounds 2   # a part, for example beside another

segdepth on `place_cube` at level `randomised`, with masks and depth of the simulator. All trainings begin
from random weights and have the same number of steps. Round 0 trains on demonstrations. Each further round
lets the policy of the round before act, records takeovers, and trains on everything so far:

    takeovers    the expert takes over early in half of the episodes, and late in the others
    early, late  all takeovers early, or late
    relabelled   DAgger: the frames of the policy, labelled by the expert
    plain        more demonstrations, at least as many frames as `takeovers` has after that round

Three training seeds, 200 initial states: the frozen ones for `takeovers` and `plain`, validation ones for the
choice between the others. Intervals resample seeds and initial states together. A study that was stopped
resumes. Writes results/learning/takeovers.json.
"""

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lerobot_processor_so101.success_rates import hierarchical_interval, with_interval

from ..lib.report import arguments, percent, save, table
from ..lib.study import Study, file_name, listed
from .segdepth import MASKS, TASKS

RECORDED = {
    "takeovers": [],
    "early": ["--takeover.late=0"],
    "late": ["--takeover.late=1"],
    "relabelled": ["--takeover.relabel=true"],
}
VARIANTS = (*RECORDED, "plain")
TASK, LEVEL = "place_cube", "randomised"
KEYS = ("task", "level", "states", "variant", "round", "seed")


class Takeovers(Study):
    """The steps of the study."""

    def record(self, name: str, episodes: int, *options: str) -> Path:
        """Record demonstrations or takeovers."""
        shared = [f"--task={TASK}", f"--level={LEVEL}", "--video=false", *MASKS]
        return self.demonstrate(name, [*shared, f"--episodes={episodes}", *options])

    def add(self, name: str, root: Path, episodes: int, *options: str) -> Path:
        """Add demonstrations or takeovers to a copy of a dataset."""
        copy = self.out / file_name(name)
        if not self.mark(name).exists():  # what was stopped begins again
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(root, copy)
        return self.record(name, episodes, "--resume=true", *options)

    def demonstrations(self) -> Path:
        return self.record("demonstrations", self.options.demonstrations, "--workers=2")

    def round(self, variant: str, number: int, seed: int) -> tuple[Path, int]:
        """Train one round of a variant; return the checkpoint and the number of frames of the dataset."""
        if number == 0:
            return self.trained(f"round 0 seed {seed}", self.demonstrations(), seed)
        name = f"{variant} {number} seed {seed}"
        if variant != "plain":
            return self.trained(name, self.dataset_of(variant, number, seed), seed)
        everything = self.add("plain", self.demonstrations(), self.options.plain, "--workers=2")
        wanted, frames = self.round("takeovers", number, seed)[1], np.cumsum(lengths(everything))
        if frames[-1] < wanted:
            raise SystemExit(f"--plain: found {frames[-1]} frames, expected {wanted} or more; raise it.")
        return self.trained(name, everything, seed, int(np.searchsorted(frames, wanted)) + 1)

    def dataset_of(self, variant: str, number: int, seed: int) -> Path:
        """Return the demonstrations with the takeovers of all rounds so far."""
        if number == 0:
            return self.demonstrations()
        checkpoint, _ = self.round(variant, number - 1, seed)
        options = [f"--policy.path={checkpoint}", f"--seed={10_000 * seed + 1_000 * number}"]
        before = self.dataset_of(variant, number - 1, seed)
        name = f"recorded {variant} {number} seed {seed}"
        return self.add(name, before, self.options.takeovers, *options, *RECORDED[variant])

    def trained(self, name: str, root: Path, seed: int, episodes: int | None = None) -> tuple[Path, int]:
        """Train on the first episodes of a dataset, or on all."""
        steps = self.options.steps
        options = [*self.arrays(root), "--dataset.repo_id=local/takeovers", f"--seed={seed}"]
        options += ["--policy.type=segdepth", "--batch_size=32", f"--save_freq={steps}", *TASKS[TASK]]
        if episodes:
            options += [f"--dataset.episodes={listed(range(episodes))}"]
        return self.train(f"train {name}", options, steps), int(lengths(root)[:episodes].sum())

    def row(self, variant: str, number: int, seed: int) -> dict:
        """Train one round of a variant, and evaluate it."""
        checkpoint, frames = self.round(variant, number, seed)
        states = self.options.states
        env = [f"--env.{image.removeprefix('--')}" for image in MASKS]
        env += [f"--env.task={TASK}", f"--env.level={LEVEL}", f"--env.starts={states}"]
        env += ["--eval.batch_size=1", f"--eval.n_episodes={self.options.initial_states}"]
        name = f"{variant if number else 'first'} {number} seed {seed} {states}"
        case = {"task": TASK, "level": LEVEL, "states": states, "variant": variant, "round": number}
        return {**case, "seed": seed, "frames": frames, "outcomes": self.evaluate(name, checkpoint, env)}


def lengths(root: Path) -> np.ndarray:
    """Return the number of frames of every episode."""
    tables = [pq.read_table(file) for file in sorted((root / "meta" / "episodes").rglob("*.parquet"))]
    return np.concatenate([table["length"].to_numpy() for table in tables])


def report(rows: list[dict]) -> None:
    """Print every training, and the mean of each round with its gain over plain demonstrations."""
    print(table([*KEYS[2:], "success"], [[*(row[key] for key in KEYS[2:]), percent(row)] for row in rows]))
    runs: dict[tuple, list[str]] = {}
    for row in rows:
        runs.setdefault((row["states"], row["variant"], row["round"]), []).append(row["outcomes"])
    summary = []
    for (states, variant, number), outcomes in runs.items():
        plain = runs.get((states, "plain", number))
        gain = ""
        if plain and variant != "plain" and number:
            gain = with_interval(*hierarchical_interval(outcomes, plain), "+")
        mean = with_interval(*hierarchical_interval(outcomes))
        summary.append([states, variant, number, len(outcomes), mean, gain])
    print(table(["states", "variant", "round", "seeds", "mean (95 %)", "over plain (95 %)"], summary))


def main() -> None:
    options = arguments(
        __doc__,
        {"variants": VARIANTS, "states": ("eval", "validation")},
        out=Path("outputs/learning_takeovers"),
        variants=["takeovers", "plain"],
        rounds=[0, 1, 2, 3],
        seeds=[0, 1, 2],
        demonstrations=100,
        plain=250,
        takeovers=60,
        steps=4000,
        states="eval",
        initial_states=200,
    )
    study = Takeovers(options.out, options)
    for number, seed, variant in product(options.rounds, options.seeds, options.variants):
        if number == 0 and variant != options.variants[0]:
            continue  # the same training for all
        rows = save("learning/takeovers", [study.row(variant, number, seed)], KEYS, vars(options))
    report(rows)


if __name__ == "__main__":
    main()
