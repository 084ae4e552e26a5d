# SPDX-License-Identifier: Apache-2.0
"""Success of segdepth with true and estimated masks and disparity, and of policies without them.

    python -m benchmarks.learning.segdepth
    python -m benchmarks.learning.segdepth --tasks lift_cube --trained_on clean --demonstrations 100 \\
        --steps 2000 --variants true blind --seeds 2

Stock commands, the same demonstrations, and the same frozen initial states for all variants:

    true         masks and depth of the simulator
    estimated    both from the two-headed EfficientViT on RGB; for place_cube it is trained here
    rgb          the same MLP and steps with convolutions on RGB
    blind        trained without images
    act          LeRobot's ACT on RGB at its own size, but for a chunk of 30 actions, for as many steps as two
                 cores afford. Only for lift_cube

Speed is measured when all variants run.
"""

from functools import partial
from itertools import cycle, product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lerobot.datasets import LeRobotDataset

from lerobot_processor_so101 import CLASS_NAMES
from lerobot_processor_so101.policy.trained_policy import load_policy

from ..lib.clock import in_turn, percentiles
from ..lib.report import FULL, arguments, save, show
from ..lib.study import CASES, Study, compare, environment, flags

PLACE = [*CLASS_NAMES, "red cube", "blue bowl"]
WATCHED = ["red cube", "blue bowl", "static_finger", "moving_finger"]
TASKS = {"lift_cube": [], "place_cube": flags("policy.", class_names=PLACE, watched_classes=WATCHED)}
VARIANTS = ("true", "estimated", "rgb", "blind", "act")
MASKS = flags(height=84, width=84, rgb=False, seg=True, depth=True)
RGB = flags(height=120, width=160)
# Learning rates suit short trainings from random weights; the defaults are for long ones from pretrained
# weights.
ACT = flags("policy.", type="act", pretrained_backbone_weights=None, chunk_size=30, n_action_steps=15)
ACT += flags("policy.", optimizer_lr=1e-4, optimizer_lr_backbone=1e-4)


class Variants(Study):
    """The steps of the study."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trained: dict[str, tuple[Path, Path]] = {}  # by variant: a checkpoint, and frames to run it on

    def demonstrations(self, task: str, kind: str, images: list[str], **changes: Any) -> Path:
        """Record demonstrations; the same seed gives the same motions, whatever is rendered."""
        options = {"level": self.options.trained_on, "episodes": self.options.demonstrations, "seed": 20000}
        return self.demonstrate(
            f"{task} {kind}", [*flags(task=task, video=False, **options | changes), *images]
        )

    def segmenter(self, task: str) -> str:
        """Return the package's own for the cube; for the bowl, train one on other demonstrations."""
        if task == "lift_cube":
            return "workbench"
        images = [*RGB, "--seg=true", "--depth=true"]
        roots = [
            self.demonstrations(task, name, images, seed=seed, episodes=count, level="randomised")
            for name, seed, count in (("masks", 40000, 150), ("more masks", 50000, 200))
        ]
        out = self.out / f"{task}_segmenter_350"
        options = {"data": list(map(str, roots)), "classes": PLACE, "disparity_head": True, "every": 6}
        options |= {"batch_size": 16, "epochs": 12, "lr": 1e-3, "augment": "upright", "init_from": "none"}
        command = ["so101-train-segmenter", *RGB, *flags(**options, workers=1, output_dir=out)]
        self.step(out.name, command, out / "metrics.json")
        return str(out / "best")

    def data(self, task: str, variant: str) -> Path:
        """Return what a variant learns from; without RGB where it is not used."""
        if variant in ("true", "blind"):
            return self.demonstrations(task, "true", MASKS)
        rgb = self.demonstrations(task, "rgb", RGB)
        if variant != "estimated":
            return rgb
        options = flags(root=rgb, drop_rgb=True, segmenter=self.segmenter(task), depth="segmenter")
        return self.dataset(f"{task}_estimated", ["so101-precompute", *options])

    def policy(self, task: str, variant: str) -> list[str]:
        """Return the policy's options."""
        if variant == "act":
            return [*ACT, "--batch_size=8"]
        own = {"rgb": {"encoder": "rgb"}, "blind": {"blind": True}}.get(variant, {})
        if variant == "estimated":
            own = {"segmenter": self.segmenter(task), "depth": "segmenter"}
        return [*flags("policy.", type="segdepth", **own), *TASKS[task], "--batch_size=32"]

    def variant(self, task: str, variant: str, seed: int) -> list[dict]:
        """Train one variant and evaluate it at every level."""
        root, name = self.data(task, variant), f"{task} {variant} {seed}"
        steps = self.options.act_steps if variant == "act" else self.options.steps
        options = ["--dataset.repo_id=local/segdepth", *flags(seed=seed, save_freq=max(1000, steps // 4))]
        options += self.arrays(root) if variant in ("true", "estimated") else [f"--dataset.root={root}"]
        checkpoint = self.train(name, [*options, *self.policy(task, variant)], steps)
        self.trained[variant] = (checkpoint, root if variant != "estimated" else self.data(task, "rgb"))
        images = MASKS if variant in ("true", "blind") else RGB
        rows = []
        for level in dict.fromkeys(("clean", self.options.trained_on)):
            env = [*environment(images, task=task, level=level), "--eval.batch_size=1"]
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
        items = [{k: v for k, v in dataset[i].items() if k.startswith("observation.")} for i in range(60)]

        def tick(policy: Any, pre: Any, post: Any, frames: Any) -> None:
            post(policy.select_action(pre(dict(next(frames)))))

        works[variant] = partial(tick, policy, preprocessor, postprocessor, cycle(items))
        parameters = sum(p.numel() for p in policy.model.parameters())
        rows.append({"task": task, "variant": variant, "parameters": parameters})
    for row, times in zip(rows, in_turn(works, ticks).values(), strict=True):
        times = times[30:]  # the first ticks warm up
        row |= {"ms_mean": round(fmean(times), 2), "ms_p95": percentiles(times)["p95"]}
    return rows


def main() -> None:
    options = arguments(
        __doc__,
        {"trained_on": ("clean", "randomised"), "tasks": TASKS, "variants": VARIANTS},
        out=Path("outputs/learning_segdepth"),
        trained_on="randomised",
        demonstrations=300,
        steps=4000,
        act_steps=2000,
        seeds=5 if FULL else 1,
        initial_states=200,
        tasks=list(TASKS),
        variants=None,
    )
    ticks: list[dict] = []
    rows: list[dict] = []
    for task in options.tasks:
        study = Variants(options.out / options.trained_on, options)
        variants = options.variants or [name for name in VARIANTS if name != "act" or task == "lift_cube"]
        for variant, seed in product(variants, range(options.seeds)):
            rows += study.variant(task, variant, seed)
        ticks += speed(task, study.trained) if options.variants is None else []
    tables = {"speed": ticks} if ticks else {}
    rows = save("learning/segdepth", rows, (*CASES, "variant", "seed"), vars(options), **tables)
    compare(rows, [("true", variant) for variant in VARIANTS])
    if ticks:
        show(ticks)


if __name__ == "__main__":
    main()
