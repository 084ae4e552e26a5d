# SPDX-License-Identifier: Apache-2.0
"""Success of segdepth with true and estimated masks and disparity, and of policies without them.

    python -m benchmarks.learning.segdepth
    python -m benchmarks.learning.segdepth --tasks lift_cube --trained_on clean --demonstrations 100 \\
        --steps 2000 --variants true blind --seeds 2

300 demonstrations at level `randomised` by default, stock commands, and the same 200 frozen initial states
for all variants:

    true         masks and depth of the simulator
    estimated    both from the two-headed EfficientViT on RGB; for place_cube it is trained here
    rgb          the same MLP and steps with convolutions on RGB
    blind        trained without images
    act          LeRobot's ACT on RGB at its own size, but for a chunk of 30 actions, for as many steps as two
    cores
                 afford: 2,000 of 8 frames take longer than segdepth's 4,000 of 32. Only for lift_cube

A study that was stopped resumes; eight hours on two cores, or in parts: `--tasks`, `--variants`. BENCH=full:
five seeds. Writes results/learning/segdepth.json, where rows that are not measured again stay; speed is
measured when all variants run.
"""

import os
from itertools import cycle, product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lerobot.datasets import LeRobotDataset

from lerobot_processor_so101 import CLASS_NAMES
from lerobot_processor_so101.policy.trained_policy import load_policy

from ..lib.clock import in_turn, percentiles
from ..lib.report import arguments, save, table
from ..lib.study import CASES, Study, compare, listed

PLACE = listed([*CLASS_NAMES, "red cube", "blue bowl"])
WATCHED = listed(["red cube", "blue bowl", "static_finger", "moving_finger"])
TASKS = {
    "lift_cube": [],
    "place_cube": [f"--policy.class_names={PLACE}", f"--policy.watched_classes={WATCHED}"],
}
VARIANTS = {
    "lift_cube": ("true", "estimated", "rgb", "blind", "act"),
    "place_cube": ("true", "estimated", "rgb", "blind"),
}
MASKS = ["--height=84", "--width=84", "--rgb=false", "--seg=true", "--depth=true"]
RGB = ["--height=120", "--width=160"]
# Learning rates suit short trainings from random weights; the defaults are for long ones from pretrained
# weights.
ACT = [
    "--policy.type=act",
    "--policy.pretrained_backbone_weights=null",
    "--policy.optimizer_lr_backbone=1e-4",
]
ACT += ["--policy.chunk_size=30", "--policy.n_action_steps=15", "--policy.optimizer_lr=1e-4"]


class Variants(Study):
    """The steps of the study."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trained: dict[str, tuple[Path, Path]] = {}  # by variant: a checkpoint, and frames to run it on

    def demonstrations(
        self, task: str, kind: str, images: list[str], seed: int = 20000, count: int = 0, level: str = ""
    ) -> Path:
        """Record demonstrations; the same seed gives the same motions, whatever is rendered."""
        level, count = level or self.options.trained_on, count or self.options.demonstrations
        options = [f"--task={task}", f"--level={level}", "--video=false", f"--seed={seed}"]
        return self.demonstrate(f"{task} {kind}", [*options, f"--episodes={count}", *images])

    def segmenter(self, task: str) -> str:
        """Return the package's own for the cube; for the bowl, train one on other demonstrations."""
        if task == "lift_cube":
            return "workbench"
        images = [*RGB, "--seg=true", "--depth=true"]
        roots = [
            self.demonstrations(task, name, images, seed, count, "randomised")
            for name, seed, count in (("masks", 40000, 150), ("more masks", 50000, 200))
        ]
        out = self.out / f"{task}_segmenter_350"
        command = ["so101-train-segmenter", f"--data=[{','.join(map(str, roots))}]", f"--output_dir={out}"]
        command += ["--disparity_head=true", "--height=120", "--width=160", "--batch_size=16", "--epochs=12"]
        command += ["--lr=1e-3", "--augment=upright", "--init_from=none", "--workers=1", "--every=6"]
        self.step(out.name, [*command, f"--classes={PLACE}"], out / "metrics.json")
        return str(out / "best")

    def data(self, task: str, variant: str) -> Path:
        """Return what a variant learns from; without RGB where it is not used."""
        if variant in ("true", "blind"):
            return self.demonstrations(task, "true", MASKS)
        rgb = self.demonstrations(task, "rgb", RGB)
        if variant != "estimated":
            return rgb
        out = self.out / f"{task}_estimated"
        command = ["so101-precompute", f"--root={rgb}", f"--output={out}", "--drop_rgb=true"]
        command += [f"--segmenter={self.segmenter(task)}", "--depth=segmenter"]
        self.step(out.name, command, out / "meta" / "info.json")
        return out

    def policy(self, task: str, variant: str) -> list[str]:
        """Return the policy's options."""
        if variant == "act":
            return [*ACT, "--batch_size=8"]
        options = ["--policy.type=segdepth", *TASKS[task], "--batch_size=32"]
        if variant == "estimated":
            options += [f"--policy.segmenter={self.segmenter(task)}", "--policy.depth=segmenter"]
        return options + {"rgb": ["--policy.encoder=rgb"], "blind": ["--policy.blind=true"]}.get(variant, [])

    def variant(self, task: str, variant: str, seed: int) -> list[dict]:
        """Train one variant and evaluate it at every level."""
        root, name = self.data(task, variant), f"{task} {variant} {seed}"
        steps = self.options.act_steps if variant == "act" else self.options.steps
        options = ["--dataset.repo_id=local/segdepth", f"--seed={seed}"]
        options += self.arrays(root) if variant in ("true", "estimated") else [f"--dataset.root={root}"]
        options += [f"--save_freq={max(1000, steps // 4)}", *self.policy(task, variant)]
        checkpoint = self.train(name, options, steps)
        self.trained[variant] = (checkpoint, root if variant != "estimated" else self.data(task, "rgb"))
        images = MASKS if variant in ("true", "blind") else RGB
        rows = []
        for level in dict.fromkeys(("clean", self.options.trained_on)):
            env = [f"--env.{image.removeprefix('--')}" for image in images]
            env += [f"--env.task={task}", f"--env.level={level}", "--eval.batch_size=1"]
            env += [f"--eval.n_episodes={self.options.initial_states}"]
            case = {"task": task, "trained_on": self.options.trained_on, "level": level}
            case |= {"demonstrations": self.options.demonstrations, "variant": variant, "seed": seed}
            rows.append({**case, "outcomes": self.evaluate(f"{name} {level}", checkpoint, env)})
        return rows


@torch.no_grad()
def speed(task: str, trained: dict[str, tuple[Path, Path]], ticks: int = 300) -> list[dict]:
    """Return parameters, and milliseconds from images to joint targets, with and without inference."""
    rows, works = [], {}
    for variant, (checkpoint, root) in trained.items():
        policy, preprocessor, postprocessor = load_policy(checkpoint)
        dataset = LeRobotDataset("local/segdepth", root=root)
        items = ({k: v for k, v in dataset[i].items() if k.startswith("observation.")} for i in range(60))

        def tick(policy=policy, pre=preprocessor, post=postprocessor, frames=cycle(list(items))) -> None:
            post(policy.select_action(pre(dict(next(frames)))))

        works[variant] = tick
        parameters = sum(p.numel() for p in policy.model.parameters())
        rows.append({"task": task, "variant": variant, "parameters": parameters})
    for row, times in zip(rows, in_turn(works, ticks).values(), strict=True):
        times = times[30:]  # the first ticks warm up
        row |= {"ms_mean": round(fmean(times), 2), "ms_p95": percentiles(times)["p95"]}
    return rows


def main() -> None:
    options = arguments(
        __doc__,
        {"trained_on": ("clean", "randomised"), "tasks": TASKS, "variants": VARIANTS["lift_cube"]},
        out=Path("outputs/learning_segdepth"),
        trained_on="randomised",
        demonstrations=300,
        steps=4000,
        act_steps=2000,
        seeds=5 if os.environ.get("BENCH") == "full" else 1,
        initial_states=200,
        tasks=list(TASKS),
        variants=None,
    )
    ticks: list[dict] = []
    rows: list[dict] = []
    for task in options.tasks:
        study = Variants(options.out / options.trained_on, options)
        for variant, seed in product(options.variants or VARIANTS[task], range(options.seeds)):
            rows += study.variant(task, variant, seed)
        ticks += speed(task, study.trained) if options.variants is None else []
    tables = {"speed": ticks} if ticks else {}
    rows = save("learning/segdepth", rows, (*CASES, "variant", "seed"), vars(options), **tables)
    compare(rows, [("true", variant) for variant in VARIANTS["lift_cube"]])
    if ticks:
        print(table(list(ticks[0]), [list(row.values()) for row in ticks]))


if __name__ == "__main__":
    main()
