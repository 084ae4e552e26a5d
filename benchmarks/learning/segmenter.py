# SPDX-License-Identifier: Apache-2.0
"""Accuracy of the segmenter in the package on recordings that it was not trained on.

    python -m benchmarks.learning.segmenter --recordings 60

The expert lifts cubes from initial states of unseen training seeds (100000 on), at each level of the
workbench; every eighth frame of both cameras is compared with the simulator's ground truth. Intervals are 95
% bootstraps over recordings. The baseline does not use the image: the most frequent class, and the mean
disparity, of each pixel over other recordings. Writes the ten worst frames to outputs/segmenter_worst.png
(image, ground truth, prediction).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from lerobot_env_so101_workbench.demos.demonstrator import Demonstrator
from lerobot_env_so101_workbench.names import LEVELS
from lerobot_env_so101_workbench.sim.cameras import CameraSetup
from lerobot_env_so101_workbench.sim.world import World
from lerobot_processor_so101 import CLASS_NAMES, depth_to_disparity, image_key, resize_area, resize_ids
from lerobot_processor_so101.models import Segmenter, make_segmenter
from lerobot_processor_so101.perception.overlay import overlay

from ..lib.report import arguments, save, table

FIRST_SEED = 100_000
CAMERAS = ("top", "wrist")
IMAGE, SIZE = (240, 320), (120, 160)  # of the cameras; at which ids are compared
CLASSES = len(CLASS_NAMES)
EVERY = 8  # frames, about a quarter of a second

type Prediction = tuple[np.ndarray, np.ndarray | None]  # ids and disparity, (h, w)


class Sample(NamedTuple):
    """One image with its ground truth."""

    recording: int
    camera: str
    rgb: np.ndarray  # (H, W, 3) uint8
    ids: np.ndarray  # (h, w)
    disparity: np.ndarray  # (h, w), 0..255


def record(level: str, seeds: range) -> list[Sample]:
    """Let the expert work, and keep some of the frames."""
    world = World("lift_cube", level)
    demonstrator = Demonstrator(world, CameraSetup(CAMERAS, *IMAGE, seg=True, depth=True), disturbance=1.2)
    samples = []
    for seed in tqdm(seeds, f"recording {level}"):
        frames = list(demonstrator.episode(seed))
        for frame in frames[::EVERY] if demonstrator.succeeded else []:
            for camera in CAMERAS:
                key = image_key(camera)
                planes = (frame[f"{key}_{kind}"][..., 0].astype(np.float32) for kind in ("seg", "depth"))
                ids, depth = map(torch.from_numpy, planes)
                ids = resize_ids(ids, SIZE).numpy().astype(np.uint8)
                disparity = resize_area(depth_to_disparity(depth), SIZE).numpy()
                samples.append(Sample(seed, camera, frame[key], ids, disparity))
    world.close()
    return samples


def predict(segmenter: Segmenter, sample: Sample) -> Prediction:
    """Return the segmenter's ids and disparity of one sample."""
    scores = segmenter(torch.from_numpy(sample.rgb).permute(2, 0, 1)[None].float() / 255)
    disparity = scores.disparity_map(SIZE)[0].numpy() if segmenter.predicts_disparity else None
    return scores.ids(SIZE)[0].numpy(), disparity


def baselines(samples: list[Sample]) -> dict[str, Prediction]:
    """Return, by camera, the most frequent class and the mean disparity of each pixel."""
    found = {}
    for camera in CAMERAS:
        own = [sample for sample in samples if sample.camera == camera]
        votes = np.stack([sum(sample.ids == id_ for sample in own) for id_ in range(CLASSES)])
        found[camera] = (votes.argmax(0), np.mean([sample.disparity for sample in own], axis=0))
    return found


def confusions(samples: list[Sample], predictions: list[Prediction]) -> np.ndarray:
    """Return pixel counts of every image by (truth, prediction), (N, C, C)."""
    found = []
    for sample, (ids, _) in zip(samples, predictions, strict=True):
        pairs = CLASSES * sample.ids.ravel().astype(int) + ids.ravel()
        found.append(np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, -1))
    return np.array(found)


def ious(counts: np.ndarray) -> np.ndarray:
    """Return the intersection over union per class, (..., C), NaN where a class is not in the truth."""
    hit, truth = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1)
    return np.where(truth > 0, hit / np.maximum(counts.sum(-2) + truth - hit, 1), np.nan)


def summary(samples: list[Sample], predictions: list[Prediction], names: Sequence[str]) -> dict[str, Any]:
    """Return mean and per-class IoU with intervals over recordings, and the error of the disparity."""
    recordings, images = np.array([sample.recording for sample in samples]), confusions(samples, predictions)
    counts = np.array([images[recordings == number].sum(0) for number in np.unique(recordings)])
    rng = np.random.default_rng(0)
    drawn = ious(np.array([counts[rng.integers(0, len(counts), len(counts))].sum(0) for _ in range(1000)]))
    total = ious(counts.sum(0))

    def entry(value: float, drawn: np.ndarray) -> dict[str, Any]:
        interval = np.nanpercentile(drawn, [2.5, 97.5]).round(4).tolist()
        return {"iou": round(float(value), 4), "bootstrap95": interval}

    errors = [
        np.abs(s.disparity - disparity).mean()
        for s, (_, disparity) in zip(samples, predictions, strict=True)
        if disparity is not None
    ]
    occurring = np.flatnonzero(~np.isnan(total))
    return {
        "mean": entry(np.nanmean(total), np.nanmean(drawn, 1)),
        "classes": {names[id_]: entry(total[id_], drawn[:, id_]) for id_ in occurring},
        "disparity_error": round(float(np.mean(errors)), 2) if errors else None,  # mean absolute, of 0..255
    }


def draw_worst(samples: list[Sample], predictions: list[Prediction], names: Sequence[str]) -> None:
    """Draw the ten frames with the lowest mean IoU: image, ground truth, prediction."""
    scores = np.nanmean(ious(confusions(samples, predictions)), 1)
    rows = []
    for index in np.argsort(scores)[:10]:
        sample, (ids, _) = samples[index], predictions[index]
        panels = [sample.rgb, *(overlay(sample.rgb, plane, names) for plane in (sample.ids, ids))]
        row = np.ascontiguousarray(np.hstack(panels))
        label = f"{sample.camera}, recording {sample.recording}, IoU {scores[index]:.2f}"
        rows.append(cv2.putText(row, label, (6, row.shape[0] - 8), 0, 0.5, (255, 255, 255), 1, cv2.LINE_AA))
    path = Path("outputs/segmenter_worst.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.hstack([np.vstack(rows[half::2]) for half in range(2)])).save(path)
    print("ten worst frames in", path)


def main() -> None:
    options = arguments(__doc__, segmenter="workbench", recordings=30)
    torch.set_num_threads(1)  # one small image at a time: threads would wait for each other
    segmenter = make_segmenter(options.segmenter)
    names = segmenter.class_names
    guesses = baselines(record("randomised", range(options.recordings)))
    rows = []
    for level in LEVELS:
        samples = record(level, range(FIRST_SEED, FIRST_SEED + options.recordings))
        predictions = [predict(segmenter, sample) for sample in tqdm(samples, "segmenting")]
        constant = [guesses[sample.camera] for sample in samples]
        for of, found in (("segmenter", predictions), ("baseline", constant)):
            rows.append({"level": level, "of": of, "frames": len(samples), **summary(samples, found, names)})
        if level == "randomised":
            draw_worst(samples, predictions, names)
    rows = save("learning/segmenter", rows, (), {**vars(options), "identity": segmenter.identity.to_dict()})
    cells = []
    for row in rows:
        classes = [row["classes"][name]["iou"] if name in row["classes"] else "-" for name in names[1:]]
        cells.append([row["level"], row["of"], row["mean"]["iou"], *classes, row["disparity_error"]])
    print(table(["level", "", "mean IoU", *names[1:], "disparity error"], cells))


if __name__ == "__main__":
    main()
