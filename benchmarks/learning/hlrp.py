# SPDX-License-Identifier: Apache-2.0
"""Success of hlrp with many recordings without actions and few demonstrations, at a size for a CPU.

    python -m benchmarks.learning.hlrp

`lift_cube`, clean: the first 20 of 200 recordings count as demonstrations, the others as video with joint
states. One small SmolVLA is trained by every variant for as many steps, first as stage 2, then as stage 3:

    video           stage 1 on all recordings; stage 2 learns its latent actions on all, and actions where
                    labelled; stage 3 actions of the demonstrations
    labelled only   actions of the demonstrations in both stages, ten times as many of them in a batch
    equal exposure  the same with stage 2 shortened so that every demonstration is drawn as often as in
                    `video`; as there, normalised by all recordings, in both stages
    random LAQ      as `video`, with the codes of an untrained latent action model
    all labels      actions of all recordings in both stages
    smolvla         LeRobot's, on the demonstrations, for the sum of the steps

On 30 unseen recordings: the error of chunks, stage 2's latent loss beside its floor, and the R² of a linear
map from latent actions to joint motion.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets import LeRobotDataset
from lerobot.utils.constants import ACTION
from torch.utils.data import default_collate

from lerobot_policy_hlrp.laq.label_file import LatentLabels
from lerobot_policy_hlrp.laq.loss_floor import unconditional_floor
from lerobot_processor_so101.policy.trained_policy import load_policy

from ..lib.report import FULL, arguments, save
from ..lib.study import Study, compare, environment, flags
from ..lib.untrained import IMAGES, SIZE, small_vlm, training
from .hlrp_laq import MASKS, label, laq_training, probe, untrained

VARIANTS = ("video", "labelled only", "equal exposure", "random LAQ", "all labels", "smolvla")
LATENT = ("video", "random LAQ")


class Stages(Study):
    """The steps of the study."""

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        super().__init__(out, options)
        self.vlm = small_vlm(out / "vlm", ["Lift the cube."])
        self.every = self.recordings(options.episodes)

    def recordings(self, count: int, seed: int = 20000, masks: bool = True) -> Path:
        """Record the first so many recordings of a seed, with the masks by which stage 1 weighs pixels."""
        options = [*flags(episodes=count, seed=seed, seg=masks), *IMAGES, "--cameras=[top,wrist]"]
        return self.demonstrate(f"recordings {count} {seed}{'' if masks else ' plain'}", options)

    def labels(self, variant: str, root: Path) -> Path:
        """Return the latent actions of recordings, from a model trained on all recordings or untrained."""
        if variant == "random LAQ":
            model = untrained(self.out / "laq_random", self.every)
        else:
            model = self.train("laq", [*laq_training(self.every), *MASKS], self.options.laq_steps)
        return label(self, variant, model, root)

    def policy(self, variant: str, few: int, seed: int) -> tuple[Path, Path | None]:
        """Train one variant through both stages; return the policy and the checkpoint of stage 2, if any."""
        name, steps2, steps3 = f"{variant} {few} {seed}", self.options.steps, self.options.policy_steps
        if variant == "smolvla":
            plain = self.recordings(few, masks=False)  # it would take masks for images
            options = ["--policy.type=smolvla", *training(self.vlm, plain, steps2 + steps3, seed)]
            return self.train(name, options, steps2 + steps3), None
        if variant == "equal exposure":
            steps2 = steps2 * few // self.options.episodes
        # The demonstrations: of all recordings, whose statistics they are normalised by, or a dataset of
        # their own.
        labelled = list(range(few))
        own = self.recordings(few) if variant == "labelled only" else self.every
        all_of_it = variant in ("all labels", "labelled only")
        chosen = [] if all_of_it else flags("dataset.", episodes=labelled)
        if variant in LATENT:
            labels = self.labels(variant, self.every)
            stage2 = flags("policy.", labelled_episodes=labelled, latent_labels=labels)
        else:
            stage2 = [*chosen, "--policy.training_mode=actions"]
        stage2 += [*flags("policy.", type="hlrp", stage="foundation"), *training(self.vlm, own, steps2, seed)]
        start = self.train(f"{name} stage 2", stage2, steps2)
        lr = self.options.policy_lr
        stage3 = [*flags("policy.", type="hlrp", init_from=start), *chosen]
        stage3 += training(self.vlm, own, steps3, seed, lr=lr)
        return self.train(f"{name} stage 3 {lr:g}", stage3, steps3), start

    @torch.no_grad()
    def chunk_error(self, checkpoint: Path) -> float:
        """Return the mean squared error of chunks on unseen recordings, in variances of the actions."""
        root, meta = self.recordings(30, seed=60000), LeRobotDataset("local/every", root=self.every).meta
        policy, preprocessor, postprocessor = load_policy(checkpoint)
        times = [step / meta.fps for step in range(policy.config.chunk_size)]
        dataset = LeRobotDataset("local/unseen", root=root, delta_timestamps={ACTION: times})
        spread, errors = torch.as_tensor(meta.stats[ACTION]["std"]), []
        torch.manual_seed(0)
        for first in range(0, len(dataset) - 32, 160):  # a fifth of them
            batch = default_collate([dataset[index] for index in range(first, first + 32)])
            true, real = batch.pop(ACTION), ~batch.pop(f"{ACTION}_is_pad")
            chunk = postprocessor(policy.predict_action_chunk(preprocessor(batch)))
            errors.append((((chunk - true) / spread).square().mean(2))[real])
        return round(float(torch.cat(errors).mean()), 3)

    @torch.no_grad()
    def latents(self, variant: str, stage2: Path) -> dict[str, Any]:
        """Return, on unseen recordings, stage 2's latent loss and its floor, and the R² of joint motion."""
        root = self.recordings(30, seed=60000)
        path = self.labels(variant, root)
        options = {"stage": "foundation", "training_mode": "latent_flow", "latent_labels": str(path)}
        policy, preprocessor, _ = load_policy(stage2, **options)
        dataset, losses = LeRobotDataset("local/unseen", root=root), []
        torch.manual_seed(0)
        for first in range(0, len(dataset) - 50, 100):
            batch = preprocessor(default_collate([dataset[index] for index in range(first, first + 50)]))
            losses.append(policy(batch)[1]["latent_loss"])
        labels, known = LatentLabels.load(path), self.labels(variant, self.every)
        floor = unconditional_floor(labels.vectors[labels.valid], policy.model.sample_time(4096, "cpu"))
        used = labels.codes.flatten().unique().numel() / labels.laq["codebook_size"]
        return {
            "loss": round(sum(losses) / len(losses), 3),
            "floor": round(floor, 3),
            "codes_used": round(used, 3),
            "motion": probe((known, self.every), (path, root), policy.config.gap),
        }

    def variant(self, few: int, variant: str, seed: int) -> dict[str, Any]:
        """Train and evaluate one variant."""
        (checkpoint, stage2), lr = self.policy(variant, few, seed), self.options.policy_lr
        name = f"{variant} {few} {seed} {lr:g}"
        env = [*environment(SIZE, task="lift_cube"), "--eval.batch_size=10"]
        outcomes = self.evaluate(name, checkpoint, env)
        row = {"demonstrations": few, "policy_lr": lr, "variant": variant, "seed": seed, "outcomes": outcomes}
        row["chunk_error"] = self.chunk_error(checkpoint)
        if variant in LATENT:
            row["latent"] = self.latents(variant, stage2)
            print(row["latent"], flush=True)
        return row


def main() -> None:
    options = arguments(
        __doc__,
        {"variants": VARIANTS},
        out=Path("outputs/learning_hlrp"),
        episodes=200,
        few=[20],  # numbers of demonstrations
        laq_steps=4000,
        steps=4000,  # of stage 2
        policy_steps=1000,  # of stage 3
        policy_lr=1e-3,  # of stage 3
        seeds=[0, 1, 2] if FULL else [0],
        initial_states=200,
        variants=list(VARIANTS),
    )
    study = Stages(options.out, options)
    rows = [study.variant(*case) for case in product(options.few, options.variants, options.seeds)]
    rows = save("learning/hlrp", rows, ("demonstrations", "policy_lr", "variant", "seed"), vars(options))
    compare(rows, [("video", variant) for variant in VARIANTS])


if __name__ == "__main__":
    main()
