# SPDX-License-Identifier: Apache-2.0
"""What latent actions contain of the arm's motion while other things move, with masks and without.

    python -m benchmarks.learning.hlrp_laq

`lift_cube` with everything randomised, and three coloured discs that move over the table behind arm and
objects, unrelated to what the arm does. With masks, pixels of the fingers and the cube have full weight, and
others a twentieth. Measured on unseen recordings: the share of the codes in use and their perplexity; the
error of the later frame over that of the earlier frame; and the R² of a linear map from latent actions to
joint motion over the gap (mean of the joints, fitted on the training recordings; bootstrap over recordings).
Also writes applied.png beside the trainings: one pair's latent action applied to other frames.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from lerobot.datasets import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE
from lerobot.utils.feature_utils import dataset_to_policy_features
from scipy.stats import bootstrap
from torch.utils.data import default_collate

from lerobot_policy_hlrp import HLRPLAQConfig
from lerobot_policy_hlrp.laq.label_file import LatentLabels
from lerobot_policy_hlrp.laq.quantizers import Quantized, Usage
from lerobot_policy_hlrp.modeling_hlrp_laq import HLRPLAQPolicy
from lerobot_processor_so101 import CLASS_NAMES, image_key, seg_key
from lerobot_processor_so101.perception.stored import decode_ids

from ..lib.report import arguments, save, show
from ..lib.study import Study, file_name, flags
from ..lib.untrained import IMAGES

DISCS = 3
OBJECTS = ["cube", "static_finger", "moving_finger"]
MASKS = flags("policy.", mask_classes=OBJECTS)
VARIANTS = {
    "fsq, masks": MASKS,
    "fsq": [],
    "nsvq, masks": [*MASKS, *flags("policy.", quantizer="nsvq", codebook_size=125)],
    "random": [],
}
SIZES = {"image_size": 96, "patch_size": 12, "width": 128, "heads": 4}
SIZES |= {"spatial_layers": 2, "temporal_layers": 1, "decoder_layers": 3}
TOP = image_key("top")


def painter(rng: np.random.Generator, size: np.ndarray) -> Callable[[np.ndarray, np.ndarray, int], None]:
    """Draw discs that move at constant speed and are reflected at the edges of an image.

    Returns:
        A function of an image (H, W, 3) that it draws into, a mask (H, W) of where, and the frame's number.
    """
    position, angle = rng.uniform(0, size, (DISCS, 2)), rng.uniform(0, 2 * np.pi, DISCS)
    speed = 0.02 * size[0] * np.stack([np.sin(angle), np.cos(angle)], 1)  # pixels per frame
    radius = rng.uniform(0.05, 0.1, DISCS) * size[0]
    colour = rng.integers(0, 256, (DISCS, 3), dtype=np.uint8)
    rows, columns = np.indices(size)

    def draw(image: np.ndarray, where: np.ndarray, tick: int) -> None:
        unfolded = (position + tick * speed) % (2 * size)
        centres = np.minimum(unfolded, 2 * size - unfolded)
        for number, (row, column) in enumerate(centres):
            inside = (rows - row) ** 2 + (columns - column) ** 2 < radius[number] ** 2
            image[where & inside] = colour[number]

    return draw


def add_discs(root: Path, output: Path) -> None:
    """Write a copy of a dataset with masks, with discs on the table in the images of the top camera."""
    source, rng = LeRobotDataset("local/source", root=root), np.random.default_rng(0)
    features = {name: dict(source.meta.features[name]) for name in (TOP, f"{TOP}_seg", OBS_STATE, ACTION)}
    options = {"root": output, "robot_type": source.meta.robot_type, "use_videos": False}
    written = LeRobotDataset.create("local/discs", source.fps, features, **options)
    for episode in source.meta.episodes:
        draw = painter(rng, np.array(features[TOP]["shape"][:2]))
        for tick, index in enumerate(range(episode["dataset_from_index"], episode["dataset_to_index"])):
            item = source[index]
            image = (255 * item[TOP]).round().to(torch.uint8).permute(1, 2, 0).numpy().copy()
            ids = item[f"{TOP}_seg"]
            draw(image, decode_ids(ids).numpy() == CLASS_NAMES.index("table"), tick)
            frame = {name: item[name].numpy() for name in (OBS_STATE, ACTION)} | {"task": item["task"]}
            frame |= {TOP: image, f"{TOP}_seg": ids.to(torch.uint16).permute(1, 2, 0).numpy()}
            written.add_frame(frame)
        written.save_episode()
    written.finalize()


def laq_training(video: Path) -> list[str]:
    """Return the options that all trainings of a latent action model share."""
    policy = {"type": "hlrp_laq", "optimizer_lr": 5e-4, "scheduler_warmup_steps": 200, **SIZES}
    data = flags("dataset.", repo_id="local/video", root=video)
    return [*flags("policy.", **policy), *data, *flags(seed=0, batch_size=32, save_freq=1000)]


def label(study: Study, name: str, checkpoint: Path, root: Path) -> Path:
    """Write the latent actions of recordings, and return their file."""
    out = study.out / f"labels_{file_name(name)}_{root.name}.safetensors"
    options = flags(checkpoint=checkpoint, root=root, output=out)
    return study.step(out.stem, ["so101-laq-label", *options], out)


def untrained(out: Path, video: Path) -> Path:
    """Save an untrained model that has counted its codes, unless it exists."""
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
    """Return a dataset of frames, each with the later one."""
    step = [0.0, gap / 30]
    return LeRobotDataset("local/video", root=root, delta_timestamps={TOP: step, f"{TOP}_seg": step})


def stacked(pairs: LeRobotDataset, indices: Iterable[int]) -> dict[str, Any]:
    """Return a batch of frames and ids."""
    batch = default_collate([pairs[index] for index in indices if index < len(pairs)])
    return {**batch, seg_key("top"): decode_ids(batch[f"{TOP}_seg"])}


def motions(labels: Path, root: Path, gap: int) -> tuple[np.ndarray, ...]:
    """Return latent actions with a one appended, (N, D), joint motion over the gap, (N, 6), and episodes.

    Args:
        labels: file with the latent actions of the recordings in `root`.
        gap: in frames; frames without a later one are left out.
    """
    known = LatentLabels.load(labels)
    rows = LeRobotDataset("local/video", root=root).hf_dataset.with_format("numpy")
    state, episodes = np.stack(rows["observation.state"]), np.asarray(rows["episode_index"])
    later = np.minimum(np.arange(len(state)) + gap, len(state) - 1)
    latents = np.hstack([known.vectors.flatten(1).numpy(), np.ones((len(state), 1))])
    return tuple(values[known.valid.numpy()] for values in (latents, state[later] - state, episodes))


def probe(train: tuple[Path, Path], test: tuple[Path, Path], gap: int) -> dict[str, Any]:
    """Return the R² of a linear map from latent action to motion, with an interval over recordings."""
    latents, motion, _ = motions(*train, gap)
    weights = np.linalg.lstsq(latents, motion, rcond=1e-6)[0]
    latents, motion, episodes = motions(*test, gap)

    def by_episode(errors: np.ndarray) -> np.ndarray:
        return np.stack([(errors[episodes == e] ** 2).sum(0) for e in np.unique(episodes)])

    residual, spread = by_episode(latents @ weights - motion), by_episode(motion - motion.mean(0))

    def r2(rows: np.ndarray) -> float:  # mean of the joints
        rows = rows.astype(int)
        return float((1 - residual[rows].sum(0) / spread[rows].sum(0)).mean())

    numbers, options = np.arange(len(residual)), {"random_state": 0, "method": "percentile"}
    interval = bootstrap((numbers,), r2, vectorized=False, **options).confidence_interval
    return {
        "r2": round(r2(numbers), 3),
        "bootstrap95": [round(float(bound), 3) for bound in interval],
        "r2_by_joint": (1 - residual.sum(0) / spread.sum(0)).round(3).tolist(),
    }


@torch.no_grad()
def reconstruction(policy: HLRPLAQPolicy, pairs: LeRobotDataset, count: int = 1000) -> dict[str, float]:
    """Return the error of the later frame over that of the earlier one, on objects and everywhere."""
    policy.eval()
    ids = torch.tensor([policy.config.class_names.index(name) for name in OBJECTS])
    sums = np.zeros((2, 2))  # (predicted, earlier), (on fingers and cube, everywhere)
    for first in np.linspace(0, len(pairs) - 50, count // 50).astype(int):
        batch = stacked(pairs, range(first, first + 50))
        kept = policy.valid(batch)
        frames = policy.frames(batch)[kept]
        earlier, later = frames.unbind(1)
        predicted = policy.model.decode(earlier, policy.model.encode(frames).passed).frame
        inside = torch.isin(batch[seg_key("top")][kept], ids).any(1, keepdim=True)
        for number, frame in enumerate((predicted, earlier)):
            error = (frame - later).square()
            sums[number] += float((error * inside).sum()), float(error.sum())
    on_arm, everywhere = (sums[0] / sums[1]).round(3).tolist()
    return {"on_arm_and_cube": on_arm, "everywhere": everywhere}


@torch.no_grad()
def applied(policy: HLRPLAQPolicy, pairs: LeRobotDataset, out: Path) -> None:
    """Draw a row per latent action: its pair, and the result on other frames."""
    policy.eval()
    length = len(pairs)
    frames = policy.frames(stacked(pairs, [length // 9 * n + 20 for n in (1, 3, 5, 7)]))
    others = policy.frames(stacked(pairs, [length // 7 * n + 10 for n in range(1, 6)]))[:, 0]
    rows = [torch.cat([torch.ones(3, 96, 192), *others], 2)]
    for pair in frames:
        passed = policy.model.encode(pair[None]).passed.expand(len(others), -1, -1)
        rows.append(torch.cat([*pair, *policy.model.decode(others, passed).frame.clamp(0, 1)], 2))
    image = (255 * torch.cat(rows, 1)).to(torch.uint8).permute(1, 2, 0).numpy()
    PIL.Image.fromarray(image).resize((2 * image.shape[1], 2 * image.shape[0]), 0).save(out)


class Stage1(Study):
    """The steps of the study."""

    def video(self, name: str, episodes: int, seed: int) -> Path:
        """Record with moving discs in the background."""
        options = flags(episodes=episodes, seed=seed, level="randomised", cameras=["top"], seg=True)
        still, out = self.demonstrate(f"{name} still", [*options, *IMAGES]), self.out / name
        self.once(name, partial(add_discs, still, out), out / "meta" / "info.json")
        return out

    def variant(self, name: str, video: Path, unseen: Path) -> dict[str, Any]:
        """Train and evaluate one variant."""
        if name == "random":
            checkpoint = untrained(self.out / "random", video)
        else:
            checkpoint = self.train(name, [*laq_training(video), *VARIANTS[name]], self.options.steps)
        policy = HLRPLAQPolicy.from_pretrained(checkpoint)
        train, test = ((label(self, name, checkpoint, root), root) for root in (video, unseen))
        pairs, labels = pairs_of(unseen, policy.config.gap), LatentLabels.load(test[0])
        vectors = labels.vectors[labels.valid]
        usage = Usage(labels.laq["codebook_size"], vectors.shape[-1])
        usage.count(Quantized(vectors, vectors, labels.codes[labels.valid]))
        if name == "fsq, masks":
            applied(policy, pairs, self.out / "applied.png")
        return {
            "variant": name,
            "codes_used": round(usage.used, 3),
            "perplexity": round(usage.perplexity, 1),
            "error_over_copy": reconstruction(policy, pairs),
            **probe(train, test, policy.config.gap),
        }


def main() -> None:
    sizes = {"episodes": 150, "held_out": 40, "steps": 4000}
    out, variants = Path("outputs/learning_hlrp_laq"), list(VARIANTS)
    options = arguments(__doc__, {"variants": VARIANTS}, out=out, **sizes, variants=variants)
    study = Stage1(options.out, options)
    video = study.video("video", options.episodes, 20000)
    unseen = study.video("unseen", options.held_out, 60000)
    rows = [study.variant(name, video, unseen) for name in options.variants]
    show(save("learning/hlrp_laq", rows, ("variant",), vars(options)))


if __name__ == "__main__":
    main()
