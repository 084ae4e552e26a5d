# SPDX-License-Identifier: Apache-2.0
"""What do latent actions say of what the arm did, when other things move too? Stage 1 of hlrp, with and without masks.

    python -m benchmarks.hlrp_laq

`lift_cube` with everything randomised, so that every episode is another scene, and discs that wander over the table behind arm and
objects (`benchmarks.moving_background`). Latent action models of one size are trained alike:

    fsq, masks      pixels of arm's fingers and cube count fully, others a twentieth
    fsq             all pixels alike
    nsvq, masks     the seed's quantiser
    random          never trained

and asked on recordings that none has seen: the share of the codes in use and their perplexity; the error of the later frame on
fingers and cube, over that of not moving; and how much of the true joint motion over the gap a linear map of the latent
action explains (R², mean of the joints, fitted on the training recordings; bootstrap over recordings). Draws
one pair's latent action applied to other frames. Some three hours on two cores. Writes results/hlrp_laq.json, where
arms that are not asked for stay, and outputs/hlrp_laq/applied.png and codes.png.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
import torch
from lerobot.datasets import LeRobotDataset
from lerobot.utils.feature_utils import dataset_to_policy_features
from scipy.stats import bootstrap

from lerobot_policy_hlrp import HLRPLAQConfig
from lerobot_policy_hlrp.labels import LatentLabels
from lerobot_policy_hlrp.modeling_hlrp_laq import HLRPLAQPolicy
from lerobot_policy_hlrp.quantizers import Quantized, Usage
from lerobot_processor_so101 import image_key, seg_key
from lerobot_processor_so101.stored import decode_ids

from .report import load, save, table
from .study import Study, file_name, with_earlier

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MASKS = ["--policy.mask_classes=[cube,static_finger,moving_finger]"]
ARMS = {
    "fsq, masks": MASKS,
    "fsq": [],
    "nsvq, masks": [*MASKS, "--policy.quantizer=nsvq", "--policy.codebook_size=125"],
    "random": [],
}
SIZES = {"image_size": 96, "patch_size": 12, "width": 128, "heads": 4}
SIZES |= {"spatial_layers": 2, "temporal_layers": 1, "decoder_layers": 3}
TOP = image_key("top")


class Stage1(Study):
    """The steps of the study."""

    def video(self, name: str, episodes: int, seed: int) -> Path:
        """Recordings with wandering discs."""
        sides = ["--height=96", "--width=96", "--video=false", "--cameras=[top]", "--seg=true"]
        still = self.demonstrate(
            f"{name} still", [f"--episodes={episodes}", f"--seed={seed}", "--level=randomised", *sides]
        )
        out = self.out / name
        command = ["python", "-m", "benchmarks.moving_background", f"--root={still}", f"--output={out}"]
        self.step(name, command, out / "meta" / "info.json")
        return out

    def model(self, arm: str, video: Path) -> Path:
        """Train one arm."""
        if arm == "random":
            return untrained(self.out / "random", video)
        return self.train(arm.replace(",", ""), [*laq_training(video), *ARMS[arm]], self.options.steps)


def laq_training(video: Path) -> list[str]:
    """What all trainings of a latent action model are told."""
    return [
        "--policy.type=hlrp_laq", *(f"--policy.{name}={value}" for name, value in SIZES.items()),
        "--policy.optimizer_lr=5e-4", "--policy.scheduler_warmup_steps=200", "--dataset.repo_id=local/video",
        f"--dataset.root={video}", "--batch_size=32", "--save_freq=1000", "--seed=0",
    ]  # fmt: skip


def label(study: Study, name: str, checkpoint: Path, root: Path) -> Path:
    """The file of latent actions of recordings."""
    out = study.out / f"labels_{file_name(name.replace(',', ''))}_{root.name}.safetensors"
    command = ["so101-laq-label", f"--checkpoint={checkpoint}", f"--root={root}", f"--output={out}"]
    return study.step(out.stem, command, out)


def untrained(out: Path, video: Path) -> Path:
    """A model that has counted its codes and learned nothing."""
    if (out / "model.safetensors").is_file():
        return out
    torch.manual_seed(0)
    features = dataset_to_policy_features(LeRobotDataset("local/video", root=video).meta.features)
    config = HLRPLAQConfig(input_features={TOP: features[TOP]}, device="cpu", push_to_hub=False, **SIZES)
    policy = HLRPLAQPolicy(config)
    pairs = pairs_of(video, config.gap)
    with torch.no_grad():
        for first in range(0, min(2000, len(pairs)), 50):
            frames = policy.frames(stacked(pairs, range(first, first + 50)))
            policy.model.usage.count(policy.model.encode(frames))
    policy.save_pretrained(out)
    return out


def pairs_of(root: Path, gap: int) -> LeRobotDataset:
    """The dataset, each frame with the later one."""
    step = [0.0, gap / 30]
    return LeRobotDataset("local/video", root=root, delta_timestamps={TOP: step, f"{TOP}_seg": step})


def stacked(pairs: LeRobotDataset, indices: Iterable[int]) -> dict[str, Any]:
    """A batch of frames and ids."""
    items = [pairs[index] for index in indices if index < len(pairs)]
    batch = {key: torch.stack([item[key] for item in items]) for key in (TOP, f"{TOP}_seg", f"{TOP}_is_pad")}
    return {**batch, seg_key("top"): decode_ids(batch.pop(f"{TOP}_seg"))}


def motions(root: Path, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Joint motion over the gap from each frame [deg], (N, 6), and the frame's episode, (N,)."""
    rows = LeRobotDataset("local/video", root=root).hf_dataset.with_format("numpy")
    state, episode = np.stack(rows["observation.state"]), np.asarray(rows["episode_index"])
    later = np.minimum(np.arange(len(state)) + gap, len(state) - 1)
    return state[later] - state, episode


def usage_of(labels: LatentLabels) -> Usage:
    """How often each code is chosen in recordings."""
    vectors, codes = labels.vectors[labels.valid], labels.codes[labels.valid]
    usage = Usage(labels.laq["codebook_size"], vectors.shape[-1])
    usage.count(Quantized(vectors, vectors, codes))
    return usage


def existing(asked: tuple) -> tuple[np.ndarray, ...]:
    """Latent actions as rows with a one at the end, motions and episodes, where there is a later frame."""
    labels, motion, episodes = asked
    kept = labels.valid.numpy()
    rows = labels.vectors.flatten(1).numpy()[kept]
    return np.hstack([rows, np.ones((len(rows), 1))]), motion[kept], episodes[kept]


def probe(train: tuple, test: tuple) -> dict[str, Any]:
    """R² of a linear map from latent to motion, with an interval over recordings.

    Args:
        train, test: (labels, motions, episodes) each.
    """
    latents, motion, _ = existing(train)
    weights = np.linalg.lstsq(latents, motion, rcond=1e-6)[0]
    latents, motion, episodes = existing(test)
    guess = latents @ weights
    wrong = np.stack([((guess - motion)[episodes == e] ** 2).sum(0) for e in np.unique(episodes)])
    spread = np.stack([((motion - motion.mean(0))[episodes == e] ** 2).sum(0) for e in np.unique(episodes)])

    def r2(rows: np.ndarray) -> float:
        rows = rows.astype(int)
        return float((1 - wrong[rows].sum(0) / spread[rows].sum(0)).mean())

    numbers = np.arange(len(wrong))
    interval = bootstrap(
        (numbers,), r2, vectorized=False, random_state=0, method="percentile"
    ).confidence_interval
    joints = (1 - wrong.sum(0) / spread.sum(0)).round(3).tolist()
    return {
        "r2": round(r2(numbers), 3),
        "bootstrap95": [round(float(bound), 3) for bound in interval],
        "r2_by_joint": joints,
    }


@torch.no_grad()
def reconstruction(policy: HLRPLAQPolicy, pairs: LeRobotDataset, count: int = 1000) -> dict[str, float]:
    """Error of the later frame on fingers and cube, and everywhere, over that of not moving."""
    policy.eval()
    ids = [policy.config.class_names.index(name) for name in ("cube", "static_finger", "moving_finger")]
    sums = np.zeros(4)
    for first in np.linspace(0, len(pairs) - 50, count // 50).astype(int):
        batch = stacked(pairs, range(first, first + 50))
        kept = policy.valid(batch)
        frames = policy.frames(batch)[kept]
        earlier, later = frames.unbind(1)
        made = policy.model.decode(earlier, policy.model.encode(frames).passed).frame
        shown = torch.isin(batch[seg_key("top")][kept], torch.tensor(ids)).any(1, keepdim=True)
        for number, frame in enumerate((made, earlier)):
            error = (frame - later).square()
            sums[2 * number] += float((error * shown).sum())
            sums[2 * number + 1] += float(error.sum())
    return {
        "on_arm_and_cube": round(float(sums[0] / sums[2]), 3),
        "everywhere": round(float(sums[1] / sums[3]), 3),
    }


@torch.no_grad()
def applied(policy: HLRPLAQPolicy, pairs: LeRobotDataset, out: Path) -> None:
    """Draw: a row per latent action; the pair it is of, and what it makes of other frames."""
    policy.eval()
    length = len(pairs)
    sources = [length // 9 * n + 20 for n in (1, 3, 5, 7)]
    targets = [length // 7 * n + 10 for n in range(1, 6)]
    frames = policy.frames(stacked(pairs, sources))
    others = policy.frames(stacked(pairs, targets))[:, 0]
    rows = [torch.cat([torch.ones(3, 96, 192), *others], 2)]
    for pair in frames:
        passed = policy.model.encode(pair[None]).passed.expand(len(others), -1, -1)
        made = policy.model.decode(others, passed).frame.clamp(0, 1)
        rows.append(torch.cat([*pair, *made], 2))
    picture = (255 * torch.cat(rows, 1)).to(torch.uint8).permute(1, 2, 0).numpy()
    PIL.Image.fromarray(picture).resize((2 * picture.shape[1], 2 * picture.shape[0]), 0).save(out)


def draw_use(usages: dict[str, Usage], out: Path) -> None:
    """Draw: how often each code is chosen on unseen recordings, the most frequent first, a line per arm."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for arm, usage in usages.items():
        label = f"{arm}: {100 * usage.used:.0f} % in use, perplexity {usage.perplexity:.0f}"
        axes.plot(usage.frequency.sort(descending=True).values.clamp_min(1e-5), label=label)
    axes.set(yscale="log", xlabel="codes, by frequency", ylabel="share of all choices")
    axes.legend()
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/hlrp_laq"))
    parser.add_argument("--episodes", type=int, default=150)
    parser.add_argument("--held_out", type=int, default=40)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options = parser.parse_args()
    study = Stage1(options.out, options)
    video = study.video("video", options.episodes, 20000)
    unseen = study.video("unseen", options.held_out, 60000)
    new: list[dict] = []
    usages: dict[str, Usage] = {}
    for arm in options.arms:
        checkpoint = study.model(arm, video)
        policy = HLRPLAQPolicy.from_pretrained(checkpoint)
        gap = policy.config.gap
        train, test = (
            (LatentLabels.load(label(study, arm, checkpoint, root)), *motions(root, gap))
            for root in (video, unseen)
        )
        usage = usages[arm] = usage_of(test[0])
        pairs = pairs_of(unseen, gap)
        new.append(
            {
                "arm": arm,
                "codes_used": round(usage.used, 3),
                "perplexity": round(usage.perplexity, 1),
                "error_over_copy": reconstruction(policy, pairs),
                **probe(train, test),
            }
        )
        print(json.dumps(new[-1]), flush=True)
        if arm == "fsq, masks":
            applied(policy, pairs, options.out / "applied.png")
    draw_use(usages, options.out / "codes.png")
    rows = with_earlier(load("hlrp_laq"), new, ("arm",))
    cells = [[str(row[key]) for key in rows[0]] for row in rows]
    print(table(list(rows[0]), cells))
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "arms")}
    print("written to", save("hlrp_laq", {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    main()
