# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a segmenter on recordings that it was not trained on.

    python -m benchmarks.learning.segmenter --recordings 60
    python -m benchmarks.learning.segmenter --segmenter outputs/segmenter/best --task sort_cubes

The expert acts from initial states of unseen training seeds (100000 on), at each level of the workbench, and
at `randomised` with cast shadows too. Every eighth frame of both cameras is compared with the simulator's
ground truth: IoU by class, with 95 % bootstraps over recordings, and what a policy depends on, by object
(`ObjectErrors`): misplaced, of the images that show it, those where it is missed or its centre is off by more
than a twentieth of the image; false, of the other images, those where it is found. "Single objects" is the
segmenter with all props and fingers as `single_objects`. The baseline does not use the image: the most
frequent class, and the mean disparity, of each pixel over other recordings. Writes the ten worst frames to
outputs/segmenter_worst.png (image, ground truth, prediction).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
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
from lerobot_env_so101_workbench.sim.scene import class_names
from lerobot_env_so101_workbench.sim.world import World
from lerobot_processor_so101 import ClassMap, depth_to_disparity, image_key, resize_area, resize_ids
from lerobot_processor_so101.models import Segmenter, make_segmenter
from lerobot_processor_so101.models.efficientvit_fpn.single_objects import keep_largest_regions
from lerobot_processor_so101.perception.overlay import overlay
from lerobot_processor_so101.segmenter_training.metrics import ObjectErrors

from ..lib.report import arguments, save, table

FIRST_SEED = 100_000
CAMERAS = ("top", "wrist")
IMAGE, SIZE = (240, 320), (120, 160)  # of the cameras; at which ids are compared
EVERY = 8  # frames, about a quarter of a second
CONDITIONS = {**{level: (level, False) for level in LEVELS}, "randomised, shadows": ("randomised", True)}

type Prediction = tuple[np.ndarray, np.ndarray | None]  # ids and disparity, (h, w)


class Sample(NamedTuple):
    """One image with its ground truth."""

    recording: int
    camera: str
    rgb: np.ndarray  # (H, W, 3) uint8
    ids: np.ndarray  # (h, w)
    disparity: np.ndarray  # (h, w), 0..255


def record(task: str, condition: str, seeds: range, classes: ClassMap) -> list[Sample]:
    """Let the expert act, and keep some of the frames, with ids of the segmenter's classes."""
    level, shadows = CONDITIONS[condition]
    world = World(task, level, shadows=shadows)
    props, names = {prop.name for prop in world.props}, class_names(world.props)
    absent = {"cube"} - props  # a class of every scene
    to_ids = np.array([0 if name in absent else classes.id(name) for name in names], np.uint8)
    demonstrator = Demonstrator(world, CameraSetup(CAMERAS, *IMAGE, seg=True, depth=True), disturbance=1.2)
    samples = []
    for seed in tqdm(seeds, f"recording {condition}"):
        frames = list(demonstrator.episode(seed))
        for frame in frames[::EVERY] if demonstrator.succeeded else []:
            for camera in CAMERAS:
                key = image_key(camera)
                planes = (frame[f"{key}_{kind}"][..., 0].astype(np.float32) for kind in ("seg", "depth"))
                ids, depth = map(torch.from_numpy, planes)
                ids = to_ids[resize_ids(ids, SIZE).numpy().astype(np.uint8)]
                disparity = resize_area(depth_to_disparity(depth), SIZE).numpy()
                samples.append(Sample(seed, camera, frame[key], ids, disparity))
    world.close()
    return samples


def predict(segmenter: Segmenter, sample: Sample, is_single: torch.Tensor | None = None) -> Prediction:
    """Return the segmenter's ids and disparity of one sample, with one region of each single object."""
    scores = segmenter(torch.from_numpy(sample.rgb).permute(2, 0, 1)[None].float() / 255)
    if is_single is not None:
        scores = replace(scores, values=keep_largest_regions(scores.values, is_single))
    disparity = scores.disparity_map(SIZE)[0].numpy() if segmenter.predicts_disparity else None
    return scores.ids(SIZE)[0].numpy(), disparity


def baselines(samples: list[Sample], n_classes: int) -> dict[str, Prediction]:
    """Return, by camera, the most frequent class and the mean disparity of each pixel."""
    found = {}
    for camera in CAMERAS:
        own = [sample for sample in samples if sample.camera == camera]
        votes = np.stack([sum(sample.ids == id_ for sample in own) for id_ in range(n_classes)])
        found[camera] = (votes.argmax(0), np.mean([sample.disparity for sample in own], axis=0))
    return found


def confusions(samples: list[Sample], predictions: list[Prediction], n_classes: int) -> np.ndarray:
    """Return pixel counts of every image by (truth, prediction), (N, C, C)."""
    found = []
    for sample, (ids, _) in zip(samples, predictions, strict=True):
        pairs = n_classes * sample.ids.ravel().astype(int) + ids.ravel()
        found.append(np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, -1))
    return np.array(found)


def ious(counts: np.ndarray) -> np.ndarray:
    """Return the intersection over union per class, (..., C), NaN where a class is not in the truth."""
    hit, truth = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1)
    return np.where(truth > 0, hit / np.maximum(counts.sum(-2) + truth - hit, 1), np.nan)


def summary(samples: list[Sample], predictions: list[Prediction], names: Sequence[str]) -> dict[str, Any]:
    """Return mean and per-class IoU with intervals over recordings, and errors of objects and disparity."""
    recordings = np.array([sample.recording for sample in samples])
    images = confusions(samples, predictions, len(names))
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
    objects = ObjectErrors(len(names))
    for sample, (ids, _) in zip(samples, predictions, strict=True):
        objects.update(torch.from_numpy(ids)[None], torch.from_numpy(sample.ids)[None])
    misplaced, false = objects.compute()
    return {
        "mean": entry(np.nanmean(total), np.nanmean(drawn, 1)),
        "classes": {names[id_]: entry(total[id_], drawn[:, id_]) for id_ in occurring},
        "misplaced": {names[id_]: round(float(misplaced[id_]), 4) for id_ in occurring},
        "false": {names[id_]: round(float(false[id_]), 4) for id_ in occurring if not false[id_].isnan()},
        "disparity_error": round(float(np.mean(errors)), 2) if errors else None,  # mean absolute, of 0..255
    }


def draw_worst(samples: list[Sample], predictions: list[Prediction], names: Sequence[str]) -> None:
    """Draw the ten frames with the lowest mean IoU: image, ground truth, prediction."""
    scores = np.nanmean(ious(confusions(samples, predictions, len(names))), 1)
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
    options = arguments(__doc__, segmenter="workbench", task="lift_cube", recordings=30)
    torch.set_num_threads(1)  # one small image at a time: threads would wait for each other
    segmenter = make_segmenter(options.segmenter)
    names = segmenter.class_names
    is_single = torch.tensor([name not in ("unlabeled", "background", "table") for name in names])
    record_task = partial(record, options.task, classes=segmenter.class_map)
    guesses = baselines(record_task("randomised", range(options.recordings)), len(names))
    rows = []
    for condition in CONDITIONS:
        samples = record_task(condition, range(FIRST_SEED, FIRST_SEED + options.recordings))
        predictions = [predict(segmenter, sample) for sample in tqdm(samples, "segmenting")]
        variants = {
            "segmenter": predictions,
            "single objects": [predict(segmenter, sample, is_single) for sample in samples],
            "baseline": [guesses[sample.camera] for sample in samples],
        }
        case = {"segmenter": options.segmenter, "task": options.task, "condition": condition}
        for of, found in variants.items():
            rows.append({**case, "of": of, "frames": len(samples), **summary(samples, found, names)})
    draw_worst(samples, predictions, names)
    settings = {**vars(options), "identity": segmenter.identity.to_dict()}
    save("learning/segmenter", rows, ("segmenter", "task", "condition", "of"), settings)
    for row in rows:
        cells = [
            [name, row["classes"][name]["iou"], row["misplaced"][name], row["false"].get(name, "")]
            for name in row["classes"]
        ]
        print(f"{row['segmenter']}, {row['task']}, {row['condition']}, {row['of']}: {row['frames']} frames")
        print(f"mean IoU {row['mean']['iou']}, disparity error {row['disparity_error']}")
        print(table(["class", "IoU", "misplaced", "false"], cells))


if __name__ == "__main__":
    main()
