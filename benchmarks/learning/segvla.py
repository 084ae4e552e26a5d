# SPDX-License-Identifier: Apache-2.0
"""Success of a small SmolVLA with segmentation cues and without, sorting cubes among distractors.

    python -m benchmarks.learning.segvla

One small SmolVLA (random weights, its language model unfrozen) is first trained without cues on a mix of the
workbench's tasks. Every variant starts from it, is fine-tuned equally on `sort_cubes` with distractors, and
is evaluated on the same frozen initial states. In all variants with masks but one the instruction chooses the
classes; "fixed classes" is given all cubes and bowls. Stock commands only, except for shuffled masks
(`benchmarks.learning.segvla_shuffled`).

A study that was stopped resumes; three hours on two cores. BENCH=full: five seeds, for a machine with a GPU.
Writes results/learning/segvla.json, where rows that are not measured again stay.
"""

import argparse
import os
from pathlib import Path

from lerobot_processor_so101 import CLASS_NAMES

from ..lib.report import arguments, save
from ..lib.small_smolvla import IMAGES, SIDE, small_vlm, training
from ..lib.study import Study, compare, listed

CUBES, BOWLS = ("red cube", "green cube", "yellow cube"), ("blue bowl", "white bowl")
FINGERS = ("static_finger", "moving_finger")
SENTENCES = ["Lift the cube.", *(f"Put the {cube} into the {bowl}." for cube in CUBES for bowl in BOWLS)]
CLASSES = [*CLASS_NAMES, *CUBES, *BOWLS]
MAIN = ("smolvla", "true masks")  # trained twice
BASE = {"lift_cube": 60, "place_cube": 120, "sort_cubes": 300}  # demonstrations
OBSERVED = "--policy.segmenter=observation"
CHOSEN = "--policy.segmentation_from_instruction=true"
VARIANTS: dict[str, list[str]] = {
    "smolvla": [],
    "true masks": [OBSERVED, CHOSEN],
    "shuffled masks": [OBSERVED, CHOSEN],
    "EfficientViT's masks": [CHOSEN],
    "fixed classes": [
        OBSERVED,
        f"--policy.segmentation_task_classes={listed([*CUBES, *BOWLS])}",
        f"--policy.segmentation_geometry_classes={listed([*CUBES, *BOWLS, *FINGERS])}",
    ],
    "connector": [OBSERVED, CHOSEN, "--policy.segmentation_injection=connector"],
    "tokens": [OBSERVED, CHOSEN, "--policy.segmentation_injection=tokens"],
}


class Cues(Study):
    """The steps of the study."""

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        super().__init__(out, options)
        self.vlm = small_vlm(out / "vlm", SENTENCES)

    def base(self) -> Path:
        """Train SmolVLA on demonstrations of all tasks."""
        root, steps = self.out / "mix", self.options.base_steps
        for number, (task, episodes) in enumerate(BASE.items()):
            options = [f"--task={task}", f"--episodes={episodes}", f"--seed={1000 * number}"]
            options += ["--repo_id=local/mix", f"--resume={str(number > 0).lower()}", *IMAGES]
            command = ["so101-demos", f"--root={root}", *options]
            self.step(f"demonstrate {task}", command, root / "meta" / "info.json")
        return self.train("base", ["--policy.type=smolvla", *training(self.vlm, root, steps, seed=0)], steps)

    def sorting(self, name: str, episodes: int, seed: int) -> Path:
        """Record demonstrations of sorting among distractors, with masks."""
        task = ["--task=sort_cubes", "--level=distractors", f"--seed={seed}", f"--episodes={episodes}"]
        return self.demonstrate(name, [*task, "--seg=true", *IMAGES])

    def segmenter(self) -> Path:
        """Train the EfficientViT on other demonstrations of the task."""
        root, out = self.sorting("masks", 60, 9000), self.out / "segmenter"
        command = ["so101-train-segmenter", f"--data=[{root}]", f"--output_dir={out}", f"--height={SIDE}"]
        command += [f"--width={SIDE}", f"--classes={listed(CLASSES)}", "--every=3", "--epochs=30"]
        command += ["--batch_size=16", "--lr=1e-3", "--init_from=none", "--workers=1"]
        self.step("segmenter", command, out / "metrics.json")
        return out / "best"

    def variant(self, name: str, seed: int) -> dict:
        """Fine-tune and evaluate one variant."""
        few = self.sorting(f"few-{self.options.episodes}", self.options.episodes, 5000)
        policy, steps = VARIANTS[name], self.options.steps
        options = ["--policy.type=segvla", f"--policy.init_from={self.base()}", *policy]
        if name == "EfficientViT's masks":
            options += [f"--policy.segmenter={self.segmenter()}"]
        options += training(self.vlm, few, steps, seed, batch=16, lr=3e-4)
        train, evaluate = (
            ("python", "-m", "benchmarks.learning.segvla_shuffled", kind, str(few))
            if name == "shuffled masks"
            else (f"lerobot-{kind}",)
            for kind in ("train", "eval")
        )
        run = f"{name} {self.options.episodes} {seed}"
        checkpoint = self.train(run, options, steps, train)
        env = [
            "--env.task=sort_cubes",
            "--env.level=distractors",
            f"--env.height={SIDE}",
            f"--env.width={SIDE}",
        ]
        env += [f"--env.seg={str(OBSERVED in policy).lower()}", "--eval.batch_size=10"]
        env += [f"--eval.n_episodes={self.options.initial_states}"]
        outcomes = self.evaluate(f"{run} distractors", checkpoint, env, evaluate)
        return {"variant": name, "seed": seed, "outcomes": outcomes}


def main() -> None:
    full = os.environ.get("BENCH") == "full"
    options = arguments(
        __doc__,
        {"variants": VARIANTS},
        out=Path("outputs/learning_segvla"),
        base_steps=5000,
        steps=1000,
        episodes=100,  # demonstrations to fine-tune on
        seeds=5 if full else 1,
        main_seeds=5 if full else 2,  # of the main variants
        initial_states=200,
        variants=list(VARIANTS),
    )
    study = Cues(options.out, options)
    rows = [
        study.variant(name, seed)
        for name in options.variants
        for seed in range(options.main_seeds if name in MAIN else options.seeds)
    ]
    rows = save("learning/segvla", rows, ("variant", "seed"), vars(options))
    pairs = [*((name, "smolvla") for name in VARIANTS), *(("true masks", name) for name in VARIANTS)]
    compare(rows, pairs, all_seeds=True)


if __name__ == "__main__":
    main()
