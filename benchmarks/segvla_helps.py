# SPDX-License-Identifier: Apache-2.0
"""Do segmentation cues help a small SmolVLA to sort cubes among distractors, from few demonstrations?

    python -m benchmarks.segvla_helps

One small SmolVLA (random weights, its language model unfrozen) is first trained without cues on a mix of the
workbench's tasks. Every arm starts from it and fine-tunes equally on `sort_cubes` with distractors, and is evaluated on
the same frozen starts. In all arms with masks but one the sentence chooses the classes; in "fixed classes" all cubes and
bowls are told. Stock commands only, but for the arm with shuffled masks (`benchmarks.segvla_shuffled`).
Stopped and started again, it goes on where it was; some three hours on two cores. BENCH=full: five
seeds, for a machine with a GPU; `--episodes` for other numbers of demonstrations. Writes results/segvla_helps.json.
"""

import argparse
import json
import os
from pathlib import Path

from lerobot_processor_so101 import CLASS_NAMES

from .report import save
from .small_smolvla import PICTURES, SIDE, small_vlm, training
from .study import Study, compare, row

LEVEL = "distractors"
CUBES, BOWLS = ("red cube", "green cube", "yellow cube"), ("blue bowl", "white bowl")
SENTENCES = ["Lift the cube.", *(f"Put the {cube} into the {bowl}." for cube in CUBES for bowl in BOWLS)]
CLASSES = [*CLASS_NAMES, *CUBES, *BOWLS]
TOLD = [*CUBES, *BOWLS, "static_finger", "moving_finger"]
MAIN = ("smolvla", "true masks")  # what the study is about; these two are trained twice
BASE = {"lift_cube": 60, "place_cube": 120, "sort_cubes": 300}  # demonstrations


def listed(names: list[str] | tuple[str, ...]) -> str:
    """A list for the command line."""
    return json.dumps(list(names))


def arms(segmenter: Path) -> dict[str, list[str]]:
    """Options of each arm beside those that all have."""
    chosen = ["--policy.segmentation_from_instruction=true"]
    true = ["--policy.segmenter=observation", *chosen]
    return {
        "smolvla": [],
        "true masks": true,
        "shuffled masks": true,
        "EfficientViT's masks": [f"--policy.segmenter={segmenter}", *chosen],
        "fixed classes": [
            "--policy.segmenter=observation",
            f"--policy.segmentation_task_classes={listed([*CUBES, *BOWLS])}",
            f"--policy.segmentation_geometry_classes={listed(TOLD)}",
        ],
        "connector": [*true, "--policy.segmentation_injection=connector"],
        "tokens": [*true, "--policy.segmentation_injection=tokens"],
    }


class Helps(Study):
    """The steps of the study.

    Args:
        out: the folder.
        options: numbers from the command line.
    """

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        super().__init__(out, options)
        self.vlm = small_vlm(out / "vlm", SENTENCES)

    def base(self) -> Path:
        """Demonstrations of the mix, and SmolVLA trained on them."""
        root = self.out / "mix"
        for number, (task, episodes) in enumerate(BASE.items()):
            self.step(
                f"demonstrate {task}",
                ["so101-demos", f"--root={root}", f"--task={task}", f"--episodes={episodes}", *PICTURES,
                 "--repo_id=local/mix", f"--resume={str(number > 0).lower()}", f"--seed={1000 * number}"],
                root / "meta" / "info.json",
            )  # fmt: skip
        options = [
            "--policy.type=smolvla",
            *training(self.vlm, root, self.options.base_steps, seed=0),
        ]
        return self.train("base", options, self.options.base_steps)

    def few(self) -> Path:
        """The few demonstrations, with true masks."""
        return self.sorted(f"few-{self.options.episodes}", self.options.episodes, 5000)

    def segmenter(self) -> Path:
        """The EfficientViT, trained on other demonstrations of the task."""
        root, out = self.sorted("masks", 60, 9000), self.out / "segmenter"
        self.step(
            "segmenter",
            ["so101-train-segmenter", f"--data=[{root}]", f"--output_dir={out}", f"--height={SIDE}",
             f"--width={SIDE}", f"--classes={listed(CLASSES)}", "--every=3", "--epochs=30", "--batch_size=16",
             "--lr=1e-3", "--init_from=none", "--workers=1"],
            out / "metrics.json",
        )  # fmt: skip
        return out / "best"

    def sorted(self, name: str, episodes: int, seed: int) -> Path:
        """Demonstrations of sorting among distractors, with masks."""
        task = ["--task=sort_cubes", "--level=distractors", f"--seed={seed}", f"--episodes={episodes}"]
        return self.demonstrate(name, [*task, "--seg=true", *PICTURES])

    def arm(self, name: str, policy: list[str], base: Path, few: Path, seed: int) -> dict:
        """Fine-tune and evaluate one arm."""
        run_name, steps = f"{name} {self.options.episodes} {seed}", self.options.steps
        start = ["--policy.type=segvla", f"--policy.init_from={base}", *policy]
        options = [*start, *training(self.vlm, few, steps, seed, batch=16, lr=3e-4)]
        checkpoint = self.train(run_name, options, steps, _command("train", name, few))
        seg = "--policy.segmenter=observation" in policy
        env = [
            "--env.task=sort_cubes", f"--env.level={LEVEL}", f"--env.height={SIDE}", f"--env.width={SIDE}",
            f"--env.seg={str(seg).lower()}", f"--eval.n_episodes={self.options.starts}", "--eval.batch_size=10",
        ]  # fmt: skip
        successes = self.evaluate(f"{run_name} {LEVEL}", checkpoint, env, _command("eval", name, few))
        return row(successes, arm=name, seed=seed)


def _command(what: str, arm: str, root: Path) -> list[str]:
    """LeRobot's command, or the one that shuffles masks."""
    if arm == "shuffled masks":
        return ["python", "-m", "benchmarks.segvla_shuffled", what, str(root)]
    return [f"lerobot-{what}"]


def main() -> None:
    full = os.environ.get("BENCH") == "full"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/segvla_helps"))
    parser.add_argument("--base_steps", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=100, help="demonstrations to fine-tune on")
    parser.add_argument("--seeds", type=int, default=5 if full else 1)
    parser.add_argument("--main_seeds", type=int, default=5 if full else 2, help=f"of {' and '.join(MAIN)}")
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--arms", nargs="+", help="only these")
    options = parser.parse_args()
    study = Helps(options.out, options)
    base, few, segmenter = study.base(), study.few(), study.segmenter()
    rows = [
        study.arm(name, policy, base, few, seed)
        for seed in range(max(options.seeds, options.main_seeds))
        for name, policy in arms(segmenter).items()
        if (not options.arms or name in options.arms)
        and seed < (options.main_seeds if name in MAIN else options.seeds)
    ]
    names = list(arms(segmenter))
    gains = compare(rows, (), [(arm, "smolvla") for arm in names] + [("true masks", arm) for arm in names])
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "arms")}
    print("written to", save("segvla_helps", {"settings": settings, "rows": rows, "paired": gains}))


if __name__ == "__main__":
    main()
