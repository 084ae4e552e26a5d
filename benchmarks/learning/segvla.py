# SPDX-License-Identifier: Apache-2.0
"""Success of a small SmolVLA with segmentation cues and without, sorting cubes among distractors.

    python -m benchmarks.learning.segvla

One small SmolVLA (random weights, its language model unfrozen) is first trained without cues on a mix of the
workbench's tasks. Every variant starts from it, is fine-tuned equally on `sort_cubes` with distractors, and
is evaluated on the same frozen initial states. In all variants with masks but one the instruction chooses the
classes; "fixed classes" is given all cubes and bowls. Stock commands only, except for shuffled masks
(`benchmarks.learning.segvla_shuffled`).

A study that was stopped resumes. BENCH=full: five seeds, for a machine with a GPU.
"""

import argparse
from pathlib import Path

from lerobot_processor_so101 import CLASS_NAMES

from ..lib.report import FULL, arguments, save
from ..lib.study import EVAL, TRAIN, Study, compare, environment, flags
from ..lib.untrained import IMAGES, SIZE, small_vlm, training

CUBES, BOWLS = ("red cube", "green cube", "yellow cube"), ("blue bowl", "white bowl")
OBJECTS = [*CUBES, *BOWLS]
SENTENCES = ["Lift the cube.", *(f"Put the {cube} into the {bowl}." for cube in CUBES for bowl in BOWLS)]
MAIN = ("smolvla", "true masks")  # trained twice
BASE = {"lift_cube": 60, "place_cube": 120, "sort_cubes": 300}  # demonstrations
SORTING = {"task": "sort_cubes", "level": "distractors"}
OBSERVED, CHOSEN = {"segmenter": "observation"}, {"segmentation_from_instruction": True}
VARIANTS = {
    "smolvla": {},
    "true masks": OBSERVED | CHOSEN,
    "shuffled masks": OBSERVED | CHOSEN,
    "EfficientViT's masks": CHOSEN,
    "fixed classes": {
        **OBSERVED,
        "segmentation_task_classes": OBJECTS,
        "segmentation_geometry_classes": [*OBJECTS, "static_finger", "moving_finger"],
    },
    "connector": OBSERVED | CHOSEN | {"segmentation_injection": "connector"},
    "tokens": OBSERVED | CHOSEN | {"segmentation_injection": "tokens"},
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
            options = flags(task=task, episodes=episodes, seed=1000 * number, resume=number > 0)
            command = ["so101-demos", f"--root={root}", "--repo_id=local/mix", *options, *IMAGES]
            self.step(f"demonstrate {task}", command, root / "meta" / "info.json")
        return self.train("base", ["--policy.type=smolvla", *training(self.vlm, root, steps, seed=0)], steps)

    def sorting(self, name: str, episodes: int, seed: int) -> Path:
        """Record demonstrations of sorting among distractors, with masks."""
        return self.demonstrate(name, [*flags(**SORTING, seed=seed, episodes=episodes, seg=True), *IMAGES])

    def segmenter(self) -> Path:
        """Train the EfficientViT on other demonstrations of the task."""
        root, out = self.sorting("masks", 60, 9000), self.out / "segmenter"
        options = {"data": [str(root)], "output_dir": out, "classes": [*CLASS_NAMES, *OBJECTS]}
        options |= {"every": 3, "epochs": 30, "batch_size": 16, "lr": 1e-3, "init_from": "none", "workers": 1}
        self.step("segmenter", ["so101-train-segmenter", *SIZE, *flags(**options)], out / "metrics.json")
        return out / "best"

    def variant(self, name: str, seed: int) -> dict:
        """Fine-tune and evaluate one variant."""
        few = self.sorting(f"few-{self.options.episodes}", self.options.episodes, 5000)
        steps, train, evaluate = self.options.steps, TRAIN, EVAL
        policy = {"type": "segvla", "init_from": self.base(), **VARIANTS[name]}
        if name == "EfficientViT's masks":
            policy["segmenter"] = self.segmenter()
        if name == "shuffled masks":
            module = ("python", "-m", "benchmarks.learning.segvla_shuffled")
            train, evaluate = (*module, "train", str(few)), (*module, "eval", str(few))
        options = [*flags("policy.", **policy), *training(self.vlm, few, steps, seed, batch=16, lr=3e-4)]
        run = f"{name} {self.options.episodes} {seed}"
        checkpoint = self.train(run, options, steps, train)
        env = environment([*SIZE, *flags(seg=policy.get("segmenter") == "observation")], **SORTING)
        outcomes = self.evaluate(f"{run} distractors", checkpoint, [*env, "--eval.batch_size=10"], evaluate)
        return {"variant": name, "seed": seed, "outcomes": outcomes}


def main() -> None:
    options = arguments(
        __doc__,
        {"variants": VARIANTS},
        out=Path("outputs/learning_segvla"),
        base_steps=5000,
        steps=1000,
        episodes=100,  # demonstrations to fine-tune on
        seeds=5 if FULL else 1,
        main_seeds=5 if FULL else 2,  # of the main variants
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
