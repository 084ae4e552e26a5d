# SPDX-License-Identifier: Apache-2.0
"""What is video without actions worth, beside few demonstrations? The loop of hlrp at a size for a CPU.

    python -m benchmarks.hlrp

`lift_cube`, clean: 200 recordings, of which the first 20 count as demonstrations and the others as video. One small SmolVLA (random
weights, nothing frozen) is trained by every arm for as many steps, first as stage 2, then as stage 3, and meets the same 200 frozen
starts:

    video            stage 1 on all recordings; stage 2 learns its latent actions on all, and actions where labelled; stage 3
                     actions of the demonstrations
    labelled only    actions of the demonstrations in both stages. Each batch of it has ten times as many of them
    random LAQ       as `video`, with the codes of a latent action model that was never trained
    all labels       actions of all recordings in both stages
    smolvla          LeRobot's, on the demonstrations, for the sum of the steps

Stage 2's latent loss on unseen recordings is told beside its floor. Stopped and started again, it goes on where it was; some five hours on two cores.
BENCH=full: three seeds, and 5, 10 and 50 demonstrations. Writes results/hlrp.json.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets import LeRobotDataset
from torch.utils.data import default_collate

from lerobot_policy_hlrp.floor import unconditional_floor
from lerobot_policy_hlrp.labels import LatentLabels
from lerobot_policy_segvla.small_vlm import save_small_vlm
from lerobot_processor_so101.trained_policy import load_policy

from .hlrp_laq import MASKS, SIZES, untrained
from .report import save
from .study import Study, compare, file_name, row

SIDE = 96
PICTURES = [f"--height={SIDE}", f"--width={SIDE}", "--video=false", "--cameras=[top,wrist]"]
ARMS = ("video", "labelled only", "random LAQ", "all labels", "smolvla")
LATENT = ("video", "random LAQ")
POLICY = [
    f"--policy.resize_imgs_with_padding=[{SIDE},{SIDE}]",
    "--policy.num_vlm_layers=4",
    "--policy.chunk_size=12",
    "--policy.n_action_steps=8",
    "--policy.num_steps=5",
    "--policy.train_expert_only=false",
    "--policy.freeze_vision_encoder=false",
    "--policy.tokenizer_max_length=16",
    "--policy.scheduler_warmup_steps=100",
    "--policy.optimizer_lr=1e-3",
]


class Loop(Study):
    """The steps of the study.

    Args:
        out: the folder.
        options: numbers from the command line.
    """

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        super().__init__(out, options)
        self.vlm = out / "vlm"
        if not self.vlm.is_dir():
            save_small_vlm(
                self.vlm, ["Lift the cube."], SIDE, 8, width=128, layers=4, vision_width=96, vision_layers=2
            )

    def recordings(self, count: int, seed: int = 20000, masks: bool = True) -> Path:
        """The first so many of the recordings, with masks, which stage 1 weighs pixels by."""
        options = [f"--episodes={count}", f"--seed={seed}", f"--seg={str(masks).lower()}", *PICTURES]
        return self.demonstrate(f"recordings {count} {seed}{'' if masks else ' plain'}", options)

    def model(self, arm: str) -> Path:
        """A latent action model, trained on all recordings or never."""
        every = self.recordings(self.options.episodes)
        if arm == "random LAQ":
            return untrained(self.out / "laq_random", every)
        options = [f"--policy.{name}={value}" for name, value in SIZES.items()]
        options += [
            "--policy.type=hlrp_laq",
            f"--dataset.root={every}",
            "--dataset.repo_id=local/video",
            *MASKS,
        ]
        options += ["--policy.optimizer_lr=5e-4", "--policy.scheduler_warmup_steps=200", "--batch_size=32"]
        return self.train("laq", [*options, "--save_freq=1000", "--seed=0"], self.options.laq_steps)

    def labels(self, arm: str, root: Path) -> Path:
        """Latent actions of recordings."""
        out = self.out / f"labels_{file_name(arm)}_{root.name}.safetensors"
        command = ["so101-laq-label", f"--checkpoint={self.model(arm)}", f"--root={root}", f"--output={out}"]
        return self.step(out.stem, command, out)

    def common(self, root: Path, steps: int, seed: int) -> list[str]:
        """What all trainings of a policy are told."""
        return [
            *POLICY,
            f"--policy.vlm_model_name={self.vlm}",
            f"--policy.scheduler_decay_steps={steps}",
            f"--dataset.root={root}",
            "--dataset.repo_id=local/loop",
            "--batch_size=32",
            "--save_freq=1000",
            f"--seed={seed}",
        ]

    def policy(self, arm: str, few: int, seed: int) -> Path:
        """Train one arm through both stages."""
        name, steps2, steps3 = f"{arm} {few} {seed}", self.options.steps, self.options.policy_steps
        every, demonstrations = self.recordings(self.options.episodes), self.recordings(few)
        own = every if arm == "all labels" else demonstrations
        if arm == "smolvla":
            plain = self.recordings(few, masks=False)  # it would take masks for pictures
            options = ["--policy.type=smolvla", *self.common(plain, steps2 + steps3, seed)]
            return self.train(name, options, steps2 + steps3)
        stage2 = ["--policy.type=hlrp", "--policy.stage=foundation"]
        if arm in LATENT:
            stage2 += self.common(every, steps2, seed)
            stage2 += [
                f"--policy.latent_labels={self.labels(arm, every)}",
                f"--policy.latent_weight={self.options.latent_weight}",
            ]
            stage2 += [f"--policy.labelled_episodes={list(range(few))}".replace(" ", "")]
        else:
            stage2 += [*self.common(own, steps2, seed), "--policy.training_mode=actions"]
        start = self.train(f"{name} stage 2", stage2, steps2)
        stage3 = ["--policy.type=hlrp", f"--policy.init_from={start}", *self.common(own, steps3, seed)]
        return self.train(f"{name} stage 3", stage3, steps3)

    @torch.no_grad()
    def latent_loss(self, arm: str, stage2: Path) -> dict[str, float]:
        """Stage 2's latent loss on recordings that nobody has seen, and its floor there."""
        root = self.recordings(30, seed=60000)
        path = self.labels(arm, root)
        policy, preprocessor, _ = load_policy(
            stage2, stage="foundation", training_mode="latent_flow", latent_labels=str(path)
        )
        dataset, losses = LeRobotDataset("local/unseen", root=root), []
        torch.manual_seed(0)
        for first in range(0, len(dataset) - 50, 100):
            batch = preprocessor(default_collate([dataset[index] for index in range(first, first + 50)]))
            losses.append(policy(batch)[1]["latent_loss"])
        labels = LatentLabels.load(path)
        floor = unconditional_floor(labels.vectors[labels.valid], policy.model.sample_time(4096, "cpu"))
        used = labels.codes.flatten().unique().numel() / labels.laq["codebook_size"]
        return {
            "loss": round(sum(losses) / len(losses), 3),
            "floor": round(floor, 3),
            "codes_used": round(used, 3),
        }

    def arm(self, arm: str, few: int, seed: int) -> dict[str, Any]:
        """Train and evaluate one arm."""
        checkpoint, name = self.policy(arm, few, seed), f"{arm} {few} {seed}"
        env = [f"--env.height={SIDE}", f"--env.width={SIDE}", "--env.task=lift_cube"]
        env += [f"--eval.n_episodes={self.options.starts}", "--eval.batch_size=10"]
        result = row(self.evaluate(name, checkpoint, env), demonstrations=few, arm=arm, seed=seed)
        if arm in LATENT:
            steps = self.options.steps
            stage2 = (
                self.out / file_name(f"{name} stage 2") / "checkpoints" / f"{steps:06d}" / "pretrained_model"
            )
            result["latent"] = self.latent_loss(arm, stage2)
            print(result["latent"], flush=True)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    full = os.environ.get("BENCH") == "full"
    parser.add_argument("--out", type=Path, default=Path("outputs/hlrp"))
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--few", type=int, nargs="+", default=[5, 10, 20, 50] if full else [20])
    parser.add_argument("--laq_steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=4000, help="of stage 2")
    parser.add_argument("--policy_steps", type=int, default=1000, help="of stage 3")
    parser.add_argument("--latent_weight", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3 if full else 1)
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[], help="by default all")
    options = parser.parse_args()
    study = Loop(options.out, options)
    rows = [
        study.arm(arm, few, seed)
        for few in options.few
        for arm in options.arms or ARMS
        for seed in range(options.seeds)
    ]
    gains = compare(rows, ("demonstrations",), [("video", arm) for arm in ARMS])
    if not options.arms:  # a part would take the place of the whole
        settings = {key: value for key, value in vars(options).items() if key not in ("out", "arms")}
        result = {"settings": settings, "rows": rows, "paired": gains}
        print("written to", save("hlrp", result))


if __name__ == "__main__":
    main()
