# SPDX-License-Identifier: Apache-2.0
"""Accuracy of the segmenter in the package on recordings that it was not trained on.

    python -m benchmarks.learning.segmenter --recordings 60

The expert lifts cubes from initial states of unseen training seeds (100000 on), at each level of the
workbench; every eighth frame of both cameras is compared with the simulator's ground truth. Intervals are 95
% bootstraps over recordings. The baseline does not
use the image: the most frequent class, and the mean disparity, of each pixel over other recordings. Writes
results/learning/segmenter.json, and the ten worst frames to outputs/segmenter_worst.png (image, ground truth,
prediction). Minutes on two cores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from lerobot_env_so101_workbench.demos.demonstrator import Demonstrator
from lerobot_env_so101_workbench.names import LEVELS
from lerobot_env_so101_workbench.sim.cameras import CameraSetup
from lerobot_env_so101_workbench.sim.world import World
from lerobot_processor_so101 import depth_to_disparity, resize_area, resize_ids
from lerobot_processor_so101.models import Segmenter, make_segmenter
from lerobot_processor_so101.perception.overlay import overlay

from ..lib.report import arguments, save, table

FIRST_SEED, BASELINE_SEED = 100_000, 0
CAMERAS = ("top", "wrist")
CLASSES = 6
EVERY = 8  # frames, about a quarter of a second

type Prediction = tuple[np.ndarray, np.ndarray | None]  # ids and disparity, (h, w)


@dataclass(frozen=True)
class Sample:
    """One image with its ground truth.

    Attributes:
        recording: number of the recording.
        rgb: (H, W, 3) uint8.
        ids: (h, w) true class ids.
        disparity: (h, w) true disparity, 0..255.
    """

    recording: int
    camera: str
    rgb: np.ndarray
    ids: np.ndarray
    disparity: np.ndarray


def record(level: str, seeds: range, image: tuple[int, int], size: tuple[int, int]) -> list[Sample]:
    """Let the expert work, and keep some of the frames."""
    world = World("lift_cube", level)
    cameras = CameraSetup(CAMERAS, *image, rgb=True, seg=True, depth=True)
    demonstrator = Demonstrator(world, cameras, disturbance=1.2)
    samples = []
    for seed in tqdm(seeds, f"recording {level}"):
        frames = list(demonstrator.episode(seed))
        for frame in frames[::EVERY] if world.is_success() else []:
            for camera in CAMERAS:
                key = f"observation.images.{camera}"
                planes = (frame[f"{key}_{kind}"][..., 0].astype(np.float32) for kind in ("seg", "depth"))
                ids, depth = map(torch.from_numpy, planes)
                ids = resize_ids(ids, size).numpy().astype(np.uint8)
                disparity = resize_area(depth_to_disparity(depth), size).numpy()
                samples.append(Sample(seed, camera, frame[key], ids, disparity))
    world.close()
    return samples


def predict(segmenter: Segmenter, sample: Sample) -> Prediction:
    """Return the segmenter's ids and disparity of one sample."""
    image = torch.from_numpy(sample.rgb).permute(2, 0, 1)[None].float() / 255
    scores, size = segmenter(image), sample.ids.shape
    disparity = scores.disparity_map(size)[0].numpy() if segmenter.predicts_disparity else None
    return scores.ids(size)[0].numpy(), disparity


def confusion(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return pixel counts by (truth, prediction)."""
    pairs = CLASSES * truth.ravel().astype(int) + predicted.ravel()
    return np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, -1)


def ious(counts: np.ndarray) -> np.ndarray:
    """Return the intersection over union per class, NaN where a class does not occur in the truth."""
    hit = np.diag(counts).astype(float)
    union = counts.sum(0) + counts.sum(1) - hit
    return np.where(counts.sum(1) > 0, hit / np.maximum(union, 1), np.nan)


def summary(samples: list[Sample], predictions: list[Prediction], names: tuple[str, ...]) -> dict[str, Any]:
    """Return mean and per-class IoU with intervals over recordings, and the error of the disparity."""
    recordings = np.array([sample.recording for sample in samples])
    counts = np.array([confusion(s.ids, ids) for s, (ids, _) in zip(samples, predictions, strict=True)])
    counts = np.array([counts[recordings == number].sum(0) for number in np.unique(recordings)])
    rng = np.random.default_rng(0)
    draws = [ious(counts[rng.integers(0, len(counts), len(counts))].sum(0)) for _ in range(1000)]
    total = ious(counts.sum(0))

    def entry(value: float, drawn: list[float]) -> dict[str, Any]:
        interval = np.nanpercentile(drawn, [2.5, 97.5]).round(4).tolist()
        return {"iou": round(float(value), 4), "bootstrap95": interval}

    errors = [
        np.abs(s.disparity - disparity).mean()
        for s, (_, disparity) in zip(samples, predictions, strict=True)
        if disparity is not None
    ]
    return {
        "mean": entry(np.nanmean(total), [np.nanmean(draw) for draw in draws]),
        "classes": {
            name: entry(total[id_], [draw[id_] for draw in draws])
            for id_, name in enumerate(names)
            if not np.isnan(total[id_])
        },
        "disparity_error": round(float(np.mean(errors)), 2) if errors else None,  # mean absolute, of 0..255
    }


def baselines(samples: list[Sample]) -> dict[str, Prediction]:
    """Return, by camera, the most frequent class and the mean disparity of each pixel."""
    found = {}
    for camera in CAMERAS:
        ids = np.stack([sample.ids for sample in samples if sample.camera == camera])
        votes = np.stack([(ids == id_).sum(0) for id_ in range(CLASSES)])
        disparity = np.mean([sample.disparity for sample in samples if sample.camera == camera], axis=0)
        found[camera] = (votes.argmax(0), disparity)
    return found


def draw_worst(
    samples: list[Sample], predictions: list[Prediction], names: tuple[str, ...], path: Path
) -> None:
    """Draw the ten frames with the lowest mean IoU: image, ground truth, prediction."""
    scores = [
        float(np.nanmean(ious(confusion(s.ids, ids))))
        for s, (ids, _) in zip(samples, predictions, strict=True)
    ]
    rows = []
    for index in np.argsort(scores)[:10]:
        sample, (ids, _) = samples[index], predictions[index]
        panels = [sample.rgb, *(overlay(sample.rgb, plane, names) for plane in (sample.ids, ids))]
        row = np.ascontiguousarray(np.hstack(panels))
        label = f"{sample.camera}, recording {sample.recording}, IoU {scores[index]:.2f}"
        rows.append(cv2.putText(row, label, (6, row.shape[0] - 8), 0, 0.5, (255, 255, 255), 1, cv2.LINE_AA))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.hstack([np.vstack(rows[half::2]) for half in range(2)])).save(path)
    print("ten worst frames in", path)


def main() -> None:
    sizes = {"image": [240, 320], "size": [120, 160]}  # of the camera's images; at which ids are compared
    options = arguments(__doc__, segmenter="workbench", recordings=30, **sizes)
    torch.set_num_threads(1)  # one small image at a time: threads would wait for each other
    segmenter = make_segmenter(options.segmenter)
    names, image, size = segmenter.class_names, tuple(options.image), tuple(options.size)
    seeds = range(BASELINE_SEED, BASELINE_SEED + options.recordings)
    guesses = baselines(record("randomised", seeds, image, size))
    rows = []
    for level in LEVELS:
        samples = record(level, range(FIRST_SEED, FIRST_SEED + options.recordings), image, size)
        predictions = [predict(segmenter, sample) for sample in tqdm(samples, "segmenting")]
        constant = [guesses[sample.camera] for sample in samples]
        for of, found in (("segmenter", predictions), ("baseline", constant)):
            rows.append({"level": level, "of": of, "frames": len(samples), **summary(samples, found, names)})
        if level == "randomised":
            draw_worst(samples, predictions, names, Path("outputs/segmenter_worst.png"))
    rows = save("learning/segmenter", rows, (), {**vars(options), "identity": segmenter.identity.to_dict()})
    cells = [
        [r["level"], r["of"], r["mean"]["iou"], *(r["classes"].get(n, {}).get("iou", "-") for n in names[1:])]
        + [r["disparity_error"]]
        for r in rows
    ]
    print(table(["level", "", "mean IoU", *names[1:], "disparity error"], cells))


if __name__ == "__main__":
    main()
