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
import shutil
from pathlib import Path

from examples.demo import run

from lerobot_policy_segvla.small_vlm import save_small_vlm

from .report import paired_gain, percent, rate, save, table

SIDE = 96
CUBES, BOWLS = ("red cube", "green cube", "yellow cube"), ("blue bowl", "white bowl")
SENTENCES = ["Lift the cube.", *(f"Put the {cube} into the {bowl}." for cube in CUBES for bowl in BOWLS)]
CLASSES = [
    "unlabeled", "background", "table", "cube", "static_finger", "moving_finger", *CUBES, *BOWLS,
]  # fmt: skip
TOLD = [*CUBES, *BOWLS, "static_finger", "moving_finger"]
BASE = {"lift_cube": 60, "place_cube": 120, "sort_cubes": 300}  # demonstrations
PICTURES = [f"--height={SIDE}", f"--width={SIDE}", "--video=false"]
POLICY = [
    "--policy.device=cpu",
    "--policy.push_to_hub=false",
    f"--policy.resize_imgs_with_padding=[{SIDE},{SIDE}]",
    "--policy.num_vlm_layers=4",
    "--policy.chunk_size=12",
    "--policy.n_action_steps=8",
    "--policy.num_steps=5",
    "--policy.train_expert_only=false",
    "--policy.freeze_vision_encoder=false",
    "--policy.tokenizer_max_length=16",
    "--policy.scheduler_warmup_steps=100",
]


def listed(names: list[str] | tuple[str, ...]) -> str:
    """A list for the command line."""
    return json.dumps(list(names))


def file_name(name: str) -> str:
    """A name of an arm as that of a file."""
    return name.replace(" ", "_").replace("'", "")


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


class Study:
    """The steps of the study, in a folder that keeps what is done.

    Args:
        out: the folder.
        options: numbers from the command line.
    """

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        self.out, self.options = out, options
        out.mkdir(parents=True, exist_ok=True)
        self.vlm = out / "vlm"
        if not self.vlm.is_dir():
            save_small_vlm(
                self.vlm, SENTENCES, SIDE, 8, width=128, layers=4, vision_width=96, vision_layers=2
            )

    def step(self, name: str, command: list[str], done: Path) -> None:
        """Run a command unless its result is there."""
        run(file_name(name), command, done, self.out)

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
        return self.train(
            "base", ["--policy.type=smolvla"], root, self.options.base_steps, batch=32, lr=1e-3, seed=0
        )

    def few(self) -> Path:
        """The few demonstrations, with true masks."""
        root = self.out / f"few-{self.options.episodes}"
        self.step(
            root.name,
            ["so101-demos", f"--root={root}", "--task=sort_cubes", "--level=distractors", "--seed=5000",
             f"--episodes={self.options.episodes}", "--seg=true", *PICTURES],
            root / "meta" / "info.json",
        )  # fmt: skip
        return root

    def segmenter(self) -> Path:
        """The EfficientViT, trained on other demonstrations of the task."""
        root, out = self.out / "masks", self.out / "segmenter"
        self.step(
            "demonstrate masks",
            ["so101-demos", f"--root={root}", "--task=sort_cubes", "--level=distractors", "--seed=9000",
             "--episodes=60", "--seg=true", *PICTURES],
            root / "meta" / "info.json",
        )  # fmt: skip
        self.step(
            "segmenter",
            ["so101-train-segmenter", f"--data=[{root}]", f"--output_dir={out}", f"--height={SIDE}",
             f"--width={SIDE}", f"--classes={listed(CLASSES)}", "--every=3", "--epochs=30", "--batch_size=16",
             "--lr=1e-3", "--init_from=none", "--workers=1"],
            out / "metrics.json",
        )  # fmt: skip
        return out / "best"

    def train(
        self, name: str, policy: list[str], root: Path, steps: int, batch: int, lr: float, seed: int
    ) -> Path:
        """Train, and return the checkpoint."""
        out = self.out / file_name(name)
        done = out / "checkpoints" / f"{steps:06d}" / "pretrained_model"
        last = out / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
        options = [
            *POLICY, *policy, f"--policy.vlm_model_name={self.vlm}",
            f"--policy.optimizer_lr={lr}", f"--policy.scheduler_decay_steps={steps}",
            "--dataset.repo_id=local/study", f"--dataset.root={root}", f"--output_dir={out}", f"--steps={steps}",
            f"--batch_size={batch}", "--num_workers=1", "--log_freq=100", "--save_freq=1000", f"--seed={seed}",
        ]  # fmt: skip
        if last.is_file():  # stopped on the way
            options = ["--resume=true", f"--config_path={last}"]
        elif out.exists():  # stopped before its first checkpoint; LeRobot wants a new folder
            shutil.rmtree(out)
        self.step(f"train {name}", [*self.command("train", name, root), *options], done / "model.safetensors")
        return done

    def evaluate(self, name: str, checkpoint: Path, root: Path, level: str, seg: bool) -> list[int]:
        """Success at each of the frozen starts, with true masks among what is observed or without."""
        out = self.out / file_name(f"eval_{name}_{level}")
        options = [
            f"--policy.path={checkpoint}", "--policy.device=cpu", "--env.type=so101_sim", "--env.task=sort_cubes",
            f"--env.level={level}", f"--env.height={SIDE}", f"--env.width={SIDE}", f"--env.seg={str(seg).lower()}",
            f"--eval.n_episodes={self.options.starts}", "--eval.batch_size=10", "--eval.use_async_envs=false",
            f"--output_dir={out}",
        ]  # fmt: skip
        self.step(out.name, [*self.command("eval", name, root), *options], out / "eval_info.json")
        metrics = json.loads((out / "eval_info.json").read_text())["per_task"][0]["metrics"]
        return [int(success) for success in metrics["successes"]]

    def command(self, what: str, name: str, root: Path) -> list[str]:
        """LeRobot's command, or the one that shuffles masks."""
        if name.startswith("shuffled"):
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
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--arms", nargs="+", help="only these")
    options = parser.parse_args()
    study = Study(options.out, options)
    base, few, segmenter = study.base(), study.few(), study.segmenter()
    rows = []
    for seed in range(options.seeds):
        for name, policy in arms(segmenter).items():
            if options.arms and name not in options.arms:
                continue
            run_name = f"{name} {options.episodes} {seed}"
            start = ["--policy.type=segvla", f"--policy.init_from={base}", *policy]
            checkpoint = study.train(run_name, start, few, options.steps, batch=16, lr=3e-4, seed=seed)
            seg = "--policy.segmenter=observation" in policy
            successes = study.evaluate(run_name, checkpoint, few, "distractors", seg)
            rows.append(
                {"arm": name, "seed": seed, **rate(sum(successes), len(successes)), "per_start": successes}
            )
    print(
        table(
            ["arm", "seed", "success (Wilson 95 %)"], [[r["arm"], str(r["seed"]), percent(r)] for r in rows]
        )
    )
    per_start: dict[str, list[list[int]]] = {}
    for row in rows:
        per_start.setdefault(row["arm"], []).append(row["per_start"])
    pairs = [(arm, "smolvla") for arm in per_start] + [("true masks", arm) for arm in per_start]
    gains = [
        {"first": first, "second": second, **paired_gain(per_start[first], per_start[second])}
        for first, second in dict.fromkeys(pairs)
        if first != second and {first, second} <= set(per_start)
    ]
    for gain in gains:
        print(f"{gain['first']} over {gain['second']}: {gain['gain']:+.3f}, {gain['bootstrap95']}")
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "arms")}
    print("written to", save("segvla_helps", {"settings": settings, "rows": rows, "paired": gains}))


if __name__ == "__main__":
    main()
