# SPDX-License-Identifier: Apache-2.0
"""Success of segdepth with true and estimated masks and disparity, and of policies without them.

    python -m benchmarks.learning.segdepth
    python -m benchmarks.learning.segdepth --tasks lift_cube --trained_on clean --demonstrations 100 \\
        --steps 2000 --levels clean --variants true blind --seeds 2
    python -m benchmarks.learning.segdepth --tasks sort_cubes --trained_on randomised --steps 8000 \\
        --demonstrations 600 --levels clean distractors shadows --variants simulated takeovers --seeds 3 \\
        --transfer place_cube

Stock commands, the same demonstrations, and the same frozen initial states for all variants. `shadows` is the
level `randomised` with cast shadows in RGB images.

    true         masks and depth of the simulator
    estimated    both from RGB, by a segmenter of the package: `workbench` for lift_cube, else `sorting`
    simulated    trained on those of the simulator as that segmenter would output them, and evaluated from RGB
    takeovers    as `simulated`, with takeovers where that policy failed from RGB images with cast shadows,
                 and trained again from random weights
    rgb          the same MLP and steps with convolutions on RGB
    blind        trained without images
    act          LeRobot's ACT on RGB at its own size, but for a chunk of 30 actions, for as many steps as two
                 cores afford. Only for lift_cube

Speed is measured when all variants run.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import cycle, product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from lerobot.datasets import LeRobotDataset

from lerobot_env_so101_workbench.improve.report import read_outcomes
from lerobot_env_so101_workbench.sim.outcome import FAILURES
from lerobot_env_so101_workbench.sim.scene import class_names
from lerobot_env_so101_workbench.tasks import TASKS as WORKBENCH_TASKS
from lerobot_processor_so101 import OBSERVED
from lerobot_processor_so101.models import class_names_of
from lerobot_processor_so101.policy.trained_policy import load_policy

from ..lib.clock import in_turn, percentiles
from ..lib.report import FULL, arguments, save, show
from ..lib.study import CASES, Study, compare, environment, file_name, flags

FINGERS = ["static_finger", "moving_finger"]
TASKS = {
    "lift_cube": [],
    "place_cube": flags("policy.", watched_classes=["red cube", "blue bowl", *FINGERS]),
    "sort_cubes": flags(
        "policy.",
        roles={"target": "cube", "container": "bowl"},
        watched_classes=["target", "container", *FINGERS],
    ),
}
LEVELS = {name: {"level": name} for name in ("clean", "distractors", "randomised")}
LEVELS["shadows"] = {"level": "randomised", "shadows": True}
MASKS = flags(height=84, width=84, rgb=False, seg=True, depth=True)
RGB = flags(height=120, width=160)
WIDE = flags(height=84, width=112, rgb=False, seg=True, depth=True)  # the shape of RGB images
SEGMENTERS = {  # of each task, with the images that it was trained on
    "lift_cube": ("workbench", RGB),
    "place_cube": ("sorting", flags(height=240, width=320)),
    "sort_cubes": ("sorting", flags(height=240, width=320)),
}


class Variant(NamedTuple):
    """What a policy is trained on, and acts on.

    Attributes:
        images: that are recorded; None for RGB images as the task's segmenter takes.
        segments: act from such images, with that segmenter.
        arrays: train on arrays.
        takeovers: add takeovers of the policy "simulated" with the same training seed.
        policy: options of the policy.
    """

    images: list[str] | None
    segments: bool = False
    arrays: bool = False
    takeovers: bool = False
    policy: Sequence[str] = ()


# Learning rates suit short trainings from random weights; the defaults are for long ones from pretrained
# weights.
ACT = flags("policy.", type="act", pretrained_backbone_weights=None, chunk_size=30, n_action_steps=15)
ACT += flags("policy.", optimizer_lr=1e-4, optimizer_lr_backbone=1e-4)
VARIANTS = {
    "true": Variant(MASKS, arrays=True),
    "estimated": Variant(None, segments=True, arrays=True),
    "simulated": Variant(WIDE, segments=True, arrays=True),
    "takeovers": Variant(WIDE, segments=True, arrays=True, takeovers=True),
    "rgb": Variant(RGB, policy=["--policy.encoder=rgb"]),
    "blind": Variant(MASKS, policy=["--policy.blind=true"]),
    "act": Variant(RGB, policy=ACT),
}


def with_classes(task: str, segmenter: str = OBSERVED) -> list[str]:
    """Return the options of a policy for a task's masks, by default those of the simulator."""
    observed = segmenter == OBSERVED
    names = class_names(WORKBENCH_TASKS[task].props) if observed else class_names_of(segmenter)
    return [*TASKS[task], *flags("policy.", class_names=list(names))]


class Variants(Study):
    """The steps of the study."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trained: dict[str, tuple[Path, Path]] = {}  # by variant: a checkpoint, and frames to run it on

    def demonstrations(self, task: str, images: Sequence[str]) -> Path:
        """Record demonstrations; the same seed gives the same motions, whatever is rendered."""
        options = {**LEVELS[self.options.trained_on], "episodes": self.options.demonstrations, "seed": 20000}
        name = "_".join([task, *(image.removeprefix("--") for image in images)]).replace("=", "_")
        return self.demonstrate(name, [*flags(task=task, video=False, **options), *images])

    def takeovers(self, task: str, root: Path, seed: int) -> Path:
        """Add takeovers of the policy `simulated` to a copy of its demonstrations."""
        policy = self.checkpoint(task, "simulated", seed)[0]
        options = {**LEVELS[self.options.trained_on], "shadows": True, "episodes": self.options.takeovers}
        options |= {"task": task, "video": False, "workers": 2, "seed": 30_000 + 1_000 * seed}
        recording = [*flags(**options), *WIDE, f"--policy.path={policy}"]
        return self.add(f"{task} with takeovers {seed}", root, recording)

    def data(self, task: str, variant: Variant, seed: int) -> tuple[Path, list[str]]:
        """Return the frames of a variant, and the options to train on them."""
        segmenter, webcams = SEGMENTERS[task]
        root = frames = self.demonstrations(task, variant.images or webcams)
        if variant.images is None:
            options = flags(root=frames, drop_rgb=True, segmenter=segmenter, depth="segmenter")
            root = self.dataset(f"{task}_estimated", ["so101-precompute", *options])
        if variant.takeovers:
            root = self.takeovers(task, root, seed)
        simulated = segmenter if variant.segments and variant.images is not None else None
        return frames, self.arrays(root, simulated) if variant.arrays else [f"--dataset.root={root}"]

    def policy(self, task: str, variant: Variant) -> list[str]:
        """Return the policy's options."""
        if variant.policy is ACT:
            return [*ACT, "--batch_size=8"]
        segmenter = SEGMENTERS[task][0] if variant.segments else OBSERVED
        own = [*flags("policy.", type="segdepth"), *with_classes(task, segmenter), *variant.policy]
        if variant.segments:
            own += flags("policy.", segmenter=segmenter, depth="segmenter")
        return [*own, "--batch_size=32"]

    def checkpoint(self, task: str, name: str, seed: int) -> tuple[Path, Path]:
        """Train one variant, and return its checkpoint and frames of its demonstrations."""
        frames, data = self.data(task, VARIANTS[name], seed)
        steps = self.options.act_steps if name == "act" else self.options.steps
        options = ["--dataset.repo_id=local/segdepth", *flags(seed=seed, save_freq=max(1000, steps // 4))]
        policy = self.policy(task, VARIANTS[name])
        return self.train(f"{task} {name} {seed}", [*options, *data, *policy], steps), frames

    def variant(self, task: str, name: str, seed: int) -> list[dict]:
        """Train one variant and evaluate it at every level."""
        variant, step = VARIANTS[name], f"{task} {name} {seed}"
        checkpoint, frames = self.checkpoint(task, name, seed)
        images = SEGMENTERS[task][1] if variant.segments else variant.images
        assert images is not None
        if variant.images != WIDE:  # its frames lack RGB
            self.trained[name] = (checkpoint, frames)
        rows = []
        for evaluated, level in product((task, *self.options.transfer), self.options.levels):
            case = {"task": evaluated, "trained_on": self.options.trained_on, "level": level}
            case |= {"demonstrations": self.options.demonstrations, "variant": name, "seed": seed}
            evaluation = f"{step} {level}"
            if evaluated != task:
                evaluation, case["variant"] = f"{evaluation} {evaluated}", f"{name}, trained on {task}"
            log = self.out / file_name(f"{evaluation}.jsonl")
            if not self.mark(f"eval {evaluation}").exists():
                log.unlink(missing_ok=True)  # of an evaluation that was stopped
            env = [*environment(images, task=evaluated, **LEVELS[level]), f"--env.episode_log={log}"]
            outcomes = self.evaluate(evaluation, checkpoint, [*env, "--eval.batch_size=1"])
            rows.append({**case, "failures": failures(log), "outcomes": outcomes})
        return rows


def failures(log: Path) -> dict[str, int]:
    """Return how many episodes of a log failed, by kind of failure."""
    counts = Counter(read_outcomes(log))
    return {name: counts[name] for name in FAILURES if counts[name]}


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
        {"trained_on": LEVELS, "tasks": TASKS, "levels": LEVELS, "transfer": TASKS, "variants": VARIANTS},
        out=Path("outputs/learning_segdepth"),
        trained_on="randomised",
        demonstrations=300,
        steps=4000,
        act_steps=2000,
        seeds=5 if FULL else 1,
        takeovers=150,
        initial_states=200,
        tasks=["lift_cube", "place_cube"],
        levels=["clean", "randomised"],
        transfer=[],  # tasks that each policy is also evaluated on, without training
        variants=None,
    )
    ticks: list[dict] = []
    rows: list[dict] = []
    store = partial(save, "learning/segdepth", keys=(*CASES, "variant", "seed"), settings=vars(options))
    for task in options.tasks:
        study = Variants(options.out / options.trained_on, options)
        variants = options.variants or [name for name in VARIANTS if VARIANTS[name].images != WIDE]
        variants = [name for name in variants if name != "act" or task == "lift_cube"]
        for variant, seed in product(variants, range(options.seeds)):
            rows = store(study.variant(task, variant, seed))
        ticks += speed(task, study.trained) if options.variants is None else []
    compare(rows, [("true", variant) for variant in VARIANTS])
    if ticks:
        store([], speed=ticks)
        show(ticks)


if __name__ == "__main__":
    main()
