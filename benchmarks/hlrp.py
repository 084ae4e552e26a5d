# SPDX-License-Identifier: Apache-2.0
"""What is video without actions worth, beside few demonstrations? The loop of hlrp at a size for a CPU.

    python -m benchmarks.hlrp

`lift_cube`, clean: 200 recordings, of which the first 20 count as demonstrations and the others as video with joint states. One small
SmolVLA (random weights, nothing frozen) is trained by every arm for as many steps, first as stage 2, then as stage 3, and meets the
same 200 frozen starts:

    video            stage 1 on all recordings; stage 2 learns its latent actions on all, and actions where labelled; stage 3
                     actions of the demonstrations
    labelled only    actions of the demonstrations in both stages. Each batch of it has ten times as many of them
    seen as often    the same with so much less of stage 2 that every demonstration is seen as often as in `video`; like that, it
                     normalises by all recordings, in both stages
    random LAQ       as `video`, with the codes of a latent action model that was never trained
    all labels       actions of all recordings in both stages
    smolvla          LeRobot's, on the demonstrations, for the sum of the steps

On 30 unseen recordings: the error of chunks; stage 2's latent loss beside its floor; and what a linear map of the latent actions
tells of the joints' motion (R²). Stopped and started again, it goes on where it was; some five hours on two cores.
BENCH=full: three seeds, and 5, 10 and 50 demonstrations. Writes results/hlrp.json, where arms that are not asked for stay.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets import LeRobotDataset
from lerobot.utils.constants import ACTION
from torch.utils.data import default_collate

from lerobot_policy_hlrp.floor import unconditional_floor
from lerobot_policy_hlrp.labels import LatentLabels
from lerobot_processor_so101.trained_policy import load_policy

from .hlrp_laq import MASKS, label, laq_training, motions, probe, untrained
from .report import load, save
from .small_smolvla import PICTURES, SIDE, small_vlm, training
from .study import Study, compare, row, with_earlier

ARMS = ("video", "labelled only", "seen as often", "random LAQ", "all labels", "smolvla")
LATENT = ("video", "random LAQ")


class Loop(Study):
    """The steps of the study.

    Args:
        out: the folder.
        options: numbers from the command line.
    """

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        super().__init__(out, options)
        self.vlm = small_vlm(out / "vlm", ["Lift the cube."])

    def recordings(self, count: int, seed: int = 20000, masks: bool = True) -> Path:
        """The first so many of the recordings, with masks, which stage 1 weighs pixels by."""
        options = [f"--episodes={count}", f"--seed={seed}", f"--seg={str(masks).lower()}"]
        options += [*PICTURES, "--cameras=[top,wrist]"]
        return self.demonstrate(f"recordings {count} {seed}{'' if masks else ' plain'}", options)

    def model(self, arm: str) -> Path:
        """A latent action model, trained on all recordings or never."""
        every = self.recordings(self.options.episodes)
        if arm == "random LAQ":
            return untrained(self.out / "laq_random", every)
        return self.train("laq", [*laq_training(every), *MASKS], self.options.laq_steps)

    def labels(self, arm: str, root: Path) -> Path:
        """Latent actions of recordings."""
        return label(self, arm, self.model(arm), root)

    def policy(self, arm: str, few: int, seed: int) -> tuple[Path, Path | None]:
        """Train one arm through both stages, and return the policy and what stage 2 made, if there is one."""
        name, steps2, steps3 = f"{arm} {few} {seed}", self.options.steps, self.options.policy_steps
        every = self.recordings(self.options.episodes)
        labelled = f"[{','.join(map(str, range(few)))}]"
        if arm == "seen as often":
            steps2 = steps2 * few // self.options.episodes
        # The demonstrations: of all recordings, whose statistics they are normalised by, or a dataset of their own.
        own, chosen = every, [f"--dataset.episodes={labelled}"]
        if arm == "all labels":
            chosen = []
        elif arm == "labelled only":
            own, chosen = self.recordings(few), []
        if arm == "smolvla":
            plain = self.recordings(few, masks=False)  # it would take masks for pictures
            options = ["--policy.type=smolvla", *training(self.vlm, plain, steps2 + steps3, seed)]
            return self.train(name, options, steps2 + steps3), None
        stage2 = ["--policy.type=hlrp", "--policy.stage=foundation"]
        if arm in LATENT:
            stage2 += training(self.vlm, every, steps2, seed)
            stage2 += [
                f"--policy.latent_labels={self.labels(arm, every)}",
                f"--policy.latent_weight={self.options.latent_weight}",
            ]
            stage2 += [f"--policy.labelled_episodes={labelled}"]
        else:
            stage2 += [*training(self.vlm, own, steps2, seed), *chosen, "--policy.training_mode=actions"]
        start = self.train(f"{name} stage 2", stage2, steps2)
        stage3 = ["--policy.type=hlrp", f"--policy.init_from={start}", *chosen]
        stage3 += training(self.vlm, own, steps3, seed, lr=self.options.policy_lr)
        return self.train(f"{name} stage 3 {self.options.policy_lr:g}", stage3, steps3), start

    @torch.no_grad()
    def chunk_error(self, checkpoint: Path) -> float:
        """Mean squared error of chunks on recordings that nobody has seen, in variances of the actions."""
        root, every = self.recordings(30, seed=60000), self.recordings(self.options.episodes)
        meta = LeRobotDataset("local/every", root=every).meta
        policy, preprocessor, postprocessor = load_policy(checkpoint)
        times = [step / meta.fps for step in range(policy.config.chunk_size)]
        dataset = LeRobotDataset("local/unseen", root=root, delta_timestamps={ACTION: times})
        spread, errors = torch.as_tensor(meta.stats[ACTION]["std"]), []
        torch.manual_seed(0)
        for first in range(0, len(dataset) - 32, 160):  # a fifth of them
            batch = default_collate([dataset[index] for index in range(first, first + 32)])
            true, shown = batch.pop(ACTION), ~batch.pop(f"{ACTION}_is_pad")
            made = postprocessor(policy.predict_action_chunk(preprocessor(batch)))
            errors.append((((made - true) / spread).square().mean(2))[shown])
        return round(float(torch.cat(errors).mean()), 3)

    @torch.no_grad()
    def latents(self, arm: str, stage2: Path) -> dict[str, Any]:
        """On recordings that nobody has seen: stage 2's latent loss and its floor, and what latents tell of motion."""
        root, every = self.recordings(30, seed=60000), self.recordings(self.options.episodes)
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
        known = LatentLabels.load(self.labels(arm, every))
        gap = policy.config.gap
        return {
            "loss": round(sum(losses) / len(losses), 3),
            "floor": round(floor, 3),
            "codes_used": round(used, 3),
            "motion": probe((known, *motions(every, gap)), (labels, *motions(root, gap))),
        }

    def arm(self, arm: str, few: int, seed: int) -> dict[str, Any]:
        """Train and evaluate one arm."""
        (checkpoint, stage2), lr = self.policy(arm, few, seed), self.options.policy_lr
        env = [f"--env.height={SIDE}", f"--env.width={SIDE}", "--env.task=lift_cube"]
        env += [f"--eval.n_episodes={self.options.starts}", "--eval.batch_size=10"]
        found = self.evaluate(f"{arm} {few} {seed} {lr:g}", checkpoint, env)
        result = row(found, demonstrations=few, policy_lr=lr, arm=arm, seed=seed)
        result["chunk_error"] = self.chunk_error(checkpoint)
        if stage2 is not None and arm in LATENT:
            result["latent"] = self.latents(arm, stage2)
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
    parser.add_argument("--policy_lr", type=float, default=1e-3, help="of stage 3")
    parser.add_argument("--latent_weight", type=float, default=1.0)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2] if full else [0], help="of training"
    )
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options = parser.parse_args()
    study = Loop(options.out, options)
    new = [study.arm(arm, few, seed) for few in options.few for arm in options.arms for seed in options.seeds]
    rows = with_earlier(load("hlrp"), new, ("demonstrations", "policy_lr", "arm", "seed"))
    gains = compare(rows, ("demonstrations", "policy_lr"), [("video", arm) for arm in ARMS])
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "arms")}
    print("written to", save("hlrp", {"settings": settings, "rows": rows, "paired": gains}))


if __name__ == "__main__":
    main()
