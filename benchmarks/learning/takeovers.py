# SPDX-License-Identifier: Apache-2.0
"""What takeovers by the expert are worth, against as many frames of plain demonstrations.

    python -m benchmarks.learning.takeovers
    python -m benchmarks.learning.takeovers --policy imf
    python -m benchmarks.learning.takeovers --variants relabelled late early --rounds 1 --states validation
    python -m benchmarks.learning.takeovers --variants plain --rounds 2   # a part, for example beside another

`place_cube` at level `randomised`: segdepth with masks and depth of the simulator, or imf with cached
features of a small SigLIP that was trained on other recordings (`benchmarks.lib.small_siglip`). All trainings
of a policy begin from random weights and have the same number of steps. Round 0 trains on demonstrations.
Each further round lets the policy of the round before act, records takeovers, and trains on all data so far:

    takeovers    the expert takes over early in half of the episodes, and late in the others
    early, late  all takeovers early, or late
    relabelled   DAgger: the frames of the policy, labelled by the expert
    plain        more demonstrations, at least as many frames as `takeovers` has after that round

Three training seeds, 200 initial states: the frozen ones for `takeovers` and `plain`, validation ones for the
choice between the others. Intervals resample seeds and initial states together. A study that was stopped
resumes. Writes results/learning/takeovers.json.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lerobot_processor_so101.success_rates import hierarchical_interval, with_interval

from ..lib.plot import draw_success, new_axes, save_figure
from ..lib.report import arguments, percent, save, table
from ..lib.small_siglip import cached_features, small_encoder
from ..lib.study import Study, environment, flags, listed
from ..lib.untrained import SIZE
from .imf import TRAINING, small_imf
from .segdepth import MASKS, with_classes

RECORDED = {
    "takeovers": [],
    "early": ["--takeover.late=0"],
    "late": ["--takeover.late=1"],
    "relabelled": ["--takeover.relabel=true"],
}
VARIANTS = (*RECORDED, "plain")
TASK, LEVEL = "place_cube", "randomised"
STEPS = 4000  # of 32 samples
# One observation, as segdepth: to read a second one takes as long as the rest of a training step.
IMF = {"n_obs_steps": 1, "num_inference_steps": 2}
RENDERED = {"segdepth": MASKS, "imf": SIZE}
KEYS = ("policy", "task", "level", "states", "variant", "round", "seed")


class Takeovers(Study):
    """The steps of the study."""

    def recording(self, episodes: int, *options: str) -> list[str]:
        """Return the options to record demonstrations or takeovers."""
        shared = [f"--task={TASK}", f"--level={LEVEL}", "--video=false", *RENDERED[self.options.policy]]
        return [*shared, f"--episodes={episodes}", *options]

    def demonstrations(self) -> Path:
        return self.demonstrate("demonstrations", self.recording(self.options.demonstrations, "--workers=2"))

    def round(self, variant: str, number: int, seed: int) -> tuple[Path, int]:
        """Train one round of a variant; return the checkpoint and the number of frames of the dataset."""
        if number == 0:
            return self.trained(f"round 0 seed {seed}", self.demonstrations(), seed)
        name = f"{variant} {number} seed {seed}"
        if variant != "plain":
            return self.trained(name, self.dataset_of(variant, number, seed), seed)
        everything = self.add(
            "plain", self.demonstrations(), self.recording(self.options.plain, "--workers=2")
        )
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
        recording = self.recording(self.options.takeovers, *options, *RECORDED[variant])
        before = self.dataset_of(variant, number - 1, seed)
        return self.add(f"recorded {variant} {number} seed {seed}", before, recording)

    def trained(self, name: str, root: Path, seed: int, episodes: int | None = None) -> tuple[Path, int]:
        """Train on the first episodes of a dataset, or on all."""
        options = [*self.learner(root), "--dataset.repo_id=local/takeovers", f"--seed={seed}"]
        options += ["--batch_size=32", f"--save_freq={STEPS}"]
        if episodes:
            options += [f"--dataset.episodes={listed(range(episodes))}"]
        return self.train(f"train {name}", options, STEPS), int(lengths(root)[:episodes].sum())

    def learner(self, root: Path) -> list[str]:
        """Return the options of the policy, and of the dataset that it learns from."""
        if self.options.policy == "segdepth":
            return [*self.arrays(root), "--policy.type=segdepth", *with_classes(TASK)]
        encoder = self.encoder()
        policy = {**TRAINING, **small_imf(encoder, STEPS), **IMF}
        return [*self.arrays(cached_features(self, root, encoder)), *flags("policy.", **policy)]

    def encoder(self) -> Path:
        """Train imf's encoder on other initial states than the demonstrations begin from."""
        frames = self.demonstrate(
            "frames", self.recording(self.options.frames, "--seg=true", "--seed=40000", "--workers=2")
        )
        return small_encoder(self, [frames])

    def row(self, variant: str, number: int, seed: int) -> dict:
        """Train one round of a variant, and evaluate it."""
        checkpoint, frames = self.round(variant, number, seed)
        policy, states = self.options.policy, self.options.states
        env = [*environment(RENDERED[policy], task=TASK, level=LEVEL, starts=states), "--eval.batch_size=1"]
        name = f"{variant if number else 'first'} {number} seed {seed} {states}"
        case = {"policy": policy, "task": TASK, "level": LEVEL, "states": states, "variant": variant}
        outcomes = self.evaluate(name, checkpoint, env)
        return {**case, "round": number, "seed": seed, "frames": frames, "outcomes": outcomes}


def lengths(root: Path) -> np.ndarray:
    """Return the number of frames of every episode."""
    tables = [pq.read_table(file) for file in sorted((root / "meta" / "episodes").rglob("*.parquet"))]
    return np.concatenate([table["length"].to_numpy() for table in tables])


def report(rows: list[dict]) -> None:
    """Print every training, and the mean of each round with its gain over plain demonstrations."""
    shown = [key for key in KEYS if key not in ("task", "level")]
    print(table([*shown, "success"], [[*(row[key] for key in shown), percent(row)] for row in rows]))
    runs: dict[tuple, list[str]] = {}
    for row in rows:
        case = tuple(row[key] for key in shown[:-1])
        runs.setdefault(case, []).append(row["outcomes"])
    summary = []
    for (policy, states, variant, number), outcomes in runs.items():
        plain = runs.get((policy, states, "plain", number))
        gain = ""
        if plain and variant != "plain" and number:
            gain = with_interval(*hierarchical_interval(outcomes, plain), "+")
        mean = with_interval(*hierarchical_interval(outcomes))
        summary.append([policy, states, variant, number, len(outcomes), mean, gain])
    print(
        table(["policy", "states", "variant", "round", "seeds", "mean (95 %)", "over plain (95 %)"], summary)
    )


def draw(rows: list[dict], policy: str, path: Path) -> None:
    """Plot success on the published states over the frames of training data: each training, and the means."""
    axes = new_axes()
    for variant, colour in (("takeovers", "#3366aa"), ("plain", "#c87832")):
        points = []
        for number in sorted({row["round"] for row in rows}):
            own = {"policy": policy, "states": "eval", "round": number}
            own["variant"] = variant if number else "takeovers"  # round 0 is that of both
            some = [row for row in rows if own.items() <= row.items()]
            if not some:
                continue
            frames = [row["frames"] for row in some]
            points.append((float(np.mean(frames)), [row["outcomes"] for row in some]))
            axes.plot(frames, [100 * row["rate"] for row in some], "x", color=colour, alpha=0.5)
        draw_success(axes, points, colour, "plain demonstrations" if variant == "plain" else variant)
    title = f"{policy} on {TASK}, {LEVEL}; crosses: single trainings"
    save_figure(axes, path, title, "frames of training data")


def main() -> None:
    options = arguments(
        __doc__,
        {"policy": tuple(RENDERED), "variants": VARIANTS, "states": ("eval", "validation")},
        out=Path("outputs/learning_takeovers"),
        policy="segdepth",
        variants=["takeovers", "plain"],
        rounds=[0, 1, 2, 3],
        seeds=[0, 1, 2],
        demonstrations=100,
        plain=250,
        takeovers=60,
        frames=120,  # demonstrations that imf's encoder is trained on
        encoder_steps=3000,
        states="eval",
        initial_states=200,
        figure=Path(""),  # draws all stored results into this image
    )
    study = Takeovers(options.out / options.policy, options)
    for number, seed, variant in product(options.rounds, options.seeds, options.variants):
        if number == 0 and variant != options.variants[0]:
            continue  # the same training for all
        rows = save("learning/takeovers", [study.row(variant, number, seed)], KEYS, vars(options))
    report(rows)
    if options.figure.name:
        draw(rows, options.policy, options.figure)


if __name__ == "__main__":
    main()
