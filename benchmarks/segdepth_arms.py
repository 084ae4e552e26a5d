# SPDX-License-Identifier: Apache-2.0
"""What are masks and disparity worth, true or estimated, to a policy of the same size and training?

    python -m benchmarks.segdepth_arms

`lift_cube` and `place_cube`, 300 demonstrations at level `randomised`, stock commands, and the same 200 frozen starts for
all arms at `clean` and at `randomised`:

    true         masks and depth of the simulator
    estimated    both from the two-headed EfficientViT that looks at colours; for place_cube it is trained here
    rgb          the same MLP and steps on convolutions over colours
    blind        trained without sight
    act          LeRobot's ACT on colours at its own size, but for a chunk of 30 actions, for as many steps as two cores
                 afford: 2,000 of 8 frames take longer than segdepth's 4,000 of 32. Only for lift_cube

Stopped and started again, it goes on where it was; some eight hours on two cores, or in parts: `--tasks`, `--arms`.
BENCH=full: five seeds. Writes results/segdepth_arms_<task>.json, where a part takes its own place; speed is measured when all arms
run.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset

from lerobot_processor_so101 import CLASS_NAMES
from lerobot_processor_so101.trained_policy import load_policy

from .report import load, save, table
from .study import Study, compare, row, with_earlier

PLACE = json.dumps([*CLASS_NAMES, "red cube", "blue bowl"])
TASKS = {
    "lift_cube": [],
    "place_cube": [
        f"--policy.class_names={PLACE}",
        f"--policy.watched_classes={json.dumps(['red cube', 'blue bowl', 'static_finger', 'moving_finger'])}",
    ],
}
ARMS = {
    "lift_cube": ("true", "estimated", "rgb", "blind", "act"),
    "place_cube": ("true", "estimated", "rgb", "blind"),
}
LEVELS = ("clean", "randomised")
SMALL = ["--height=84", "--width=84", "--rgb=false", "--seg=true", "--depth=true"]
COLOURS = ["--height=120", "--width=160"]
# Learning rates suit short trainings from random weights; the defaults are for long ones from pretrained weights.
ACT = [
    "--policy.type=act",
    "--policy.pretrained_backbone_weights=null",
    "--policy.optimizer_lr_backbone=1e-4",
]
ACT += ["--policy.chunk_size=30", "--policy.n_action_steps=15", "--policy.optimizer_lr=1e-4"]


class Arms(Study):
    """The steps of the study."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trained: dict[str, tuple[Path, Path]] = {}  # a checkpoint of each arm, and frames as it acts on

    def demonstrations(
        self, task: str, kind: str, pictures: list[str], seed: int = 20000, count: int = 0
    ) -> Path:
        """Demonstrations; the same seed gives the same motions, whatever is rendered."""
        count = count or self.options.episodes
        level = ["--level=randomised", "--video=false", f"--seed={seed}", f"--episodes={count}"]
        return self.demonstrate(f"{task} {kind}", [f"--task={task}", *level, *pictures])

    def segmenter(self, task: str) -> str:
        """The package's own for the cube; one that also knows the bowl, trained on other demonstrations."""
        if task == "lift_cube":
            return "workbench"
        pictures = [*COLOURS, "--seg=true", "--depth=true"]
        roots = [
            self.demonstrations(task, name, pictures, seed, count)
            for name, seed, count in (("masks", 40000, 150), ("more masks", 50000, 200))
        ]
        out = self.out / f"{task}_segmenter_350"
        data = ",".join(map(str, roots))
        command = ["so101-train-segmenter", f"--data=[{data}]", f"--output_dir={out}", "--every=6"]
        command += ["--disparity_head=true", "--height=120", "--width=160", "--batch_size=16", "--epochs=12"]
        command += ["--lr=1e-3", "--augment=upright", "--init_from=none", "--workers=1"]
        command += [f"--classes={PLACE}"]
        self.step(out.name, command, out / "metrics.json")
        return str(out / "best")

    def data(self, task: str, arm: str) -> Path:
        """What an arm learns from; without colours where they are not used."""
        if arm in ("true", "blind"):
            return self.demonstrations(task, "true", SMALL)
        colours = self.demonstrations(task, "colours", COLOURS)
        if arm != "estimated":
            return colours
        out = self.out / f"{task}_estimated"
        command = ["so101-precompute", f"--root={colours}", f"--output={out}", "--drop_rgb=true"]
        command += [f"--segmenter={self.segmenter(task)}", "--depth=segmenter"]
        self.step(out.name, command, out / "meta" / "info.json")
        return out

    def policy(self, task: str, arm: str) -> list[str]:
        """Options of an arm."""
        if arm == "act":
            return [*ACT, "--batch_size=8"]
        options = ["--policy.type=segdepth", *TASKS[task], "--batch_size=32"]
        if arm == "estimated":
            options += [f"--policy.segmenter={self.segmenter(task)}", "--policy.depth=segmenter"]
        return options + {"rgb": ["--policy.encoder=rgb"], "blind": ["--policy.blind=true"]}.get(arm, [])

    def arm(self, task: str, arm: str, seed: int) -> list[dict]:
        """Train one arm and evaluate it at every level."""
        root = self.data(task, arm)
        name = f"{task} {arm} {seed}"
        steps = self.options.act_steps if arm == "act" else self.options.steps
        options = [
            f"--dataset.root={root}",
            "--dataset.repo_id=local/arms",
            f"--save_freq={max(1000, steps // 4)}",
        ]
        options += [f"--seed={seed}", *self.policy(task, arm)]
        checkpoint = self.train(name, options, steps)
        pictures = SMALL if arm in ("true", "blind") else COLOURS
        rows = []
        self.trained[arm] = (checkpoint, root if arm != "estimated" else self.data(task, "rgb"))
        for level in LEVELS:
            env = [f"--env.{picture.removeprefix('--')}" for picture in pictures]
            env += [f"--env.task={task}", f"--env.level={level}", "--eval.batch_size=1"]
            env += [f"--eval.n_episodes={self.options.starts}"]
            successes = self.evaluate(f"{name} {level}", checkpoint, env)
            rows.append(row(successes, task=task, level=level, arm=arm, seed=seed))
        return rows


def speed(arms: dict[str, tuple[Path, Path]], ticks: int = 300) -> list[dict]:
    """Parameters, and milliseconds from pictures in memory to joint targets; all arms in turn at every tick."""
    loops = {arm: Loop(*where) for arm, where in arms.items()}
    for tick in range(ticks):
        for loop in loops.values():
            loop.tick(tick)
    return [{"arm": arm, **loop.summary()} for arm, loop in loops.items()]


class Loop:
    """A trained policy and its pipelines, fed with the frames of a dataset.

    Args:
        checkpoint: the policy's.
        root: the dataset's folder.
    """

    def __init__(self, checkpoint: Path, root: Path) -> None:
        self.policy, self.pre, self.post = load_policy(checkpoint)
        frames = LeRobotDataset("local/arms", root=root)
        self.frames = [
            {key: value for key, value in frames[i].items() if key.startswith("observation.")}
            for i in range(60)
        ]
        self.ms: list[float] = []

    @torch.no_grad()
    def tick(self, number: int) -> None:
        """One control period."""
        frame = self.frames[number % len(self.frames)]
        begin = time.perf_counter()
        self.post(self.policy.select_action(self.pre(dict(frame))))
        self.ms.append(1000 * (time.perf_counter() - begin))

    def summary(self) -> dict[str, float]:
        """The mean over ticks, and the slow ones, which are those that look; an average copy counts once."""
        model = self.policy.model
        ms = self.ms[30:]  # after warming up
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "ms_mean": round(float(np.mean(ms)), 2),
            "ms_p95": round(float(np.percentile(ms, 95)), 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/segdepth_arms"))
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--act_steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5 if os.environ.get("BENCH") == "full" else 1)
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS["lift_cube"], default=[], help="by default all")
    options = parser.parse_args()
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "tasks", "arms")}
    for task in options.tasks:
        study, arms = Arms(options.out, options), ARMS[task]
        new = [
            found
            for arm in options.arms or arms
            for seed in range(options.seeds)
            for found in study.arm(task, arm, seed)
        ]
        name = f"segdepth_arms_{task}"
        before = load(name) if options.arms else {}
        rows = sorted(
            with_earlier(before, new, ("arm", "level", "seed")),
            key=lambda r: (r["level"], arms.index(r["arm"]), r["seed"]),
        )
        gains = compare(rows, ("task", "level"), [("true", arm) for arm in arms])
        ticks = before.get("speed", []) if options.arms else speed(study.trained)
        if ticks:
            print(table(list(ticks[0]), [list(map(str, row.values())) for row in ticks]))
        result = {"settings": settings, "rows": rows, "paired": gains, "speed": ticks}
        print("written to", save(name, result))


if __name__ == "__main__":
    main()
