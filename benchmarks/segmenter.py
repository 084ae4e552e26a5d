# SPDX-License-Identifier: Apache-2.0
"""How good the segmenter that comes with the package is, on recordings it never saw.

    .venv/bin/python -m benchmarks.segmenter

The expert lifts cubes from starts of unseen training seeds (100000 on), at each level of the workbench; every eighth
frame of both cameras is compared with the simulator's truth. Intervals are 95 % bootstraps over recordings. The
baselines know the camera but see no picture: the most frequent class, and the mean disparity, of each pixel over
other recordings. Writes results/segmenter.json, and the ten worst frames to outputs/segmenter_worst.png: picture,
truth, answer. Minutes on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from lerobot_env_so101_workbench.demos import Demonstrator
from lerobot_env_so101_workbench.names import LEVELS
from lerobot_env_so101_workbench.views import View
from lerobot_env_so101_workbench.world import World
from lerobot_processor_so101 import depth_to_disparity, resize_area, resize_ids
from lerobot_processor_so101.overlay import overlay
from lerobot_processor_so101.segmenters import Segmenter, make_segmenter

from .report import save, table

FIRST_SEED, BASELINE_SEED = 100_000, 0
CAMERAS = ("top", "wrist")
CLASSES = 6
EVERY = 8  # frames, about a quarter of a second


@dataclass(frozen=True)
class Sample:
    """One picture with its truth.

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


def record(level: str, seeds: range, picture: tuple[int, int], size: tuple[int, int]) -> list[Sample]:
    """Let the expert work and keep some of the frames."""
    world = World("lift_cube", level)
    view = View(CAMERAS, *picture, rgb=True, seg=True, depth=True)
    demonstrator = Demonstrator(world, view, disturbance=1.2)
    samples = []
    for seed in tqdm(seeds, f"recording {level}"):
        for frame in (demonstrator.episode(seed) or [])[::EVERY]:
            for camera in CAMERAS:
                key = f"observation.images.{camera}"
                ids, depth = (
                    torch.from_numpy(frame[f"{key}_{kind}"][..., 0].astype(np.float32))
                    for kind in ("seg", "depth")
                )
                samples.append(
                    Sample(
                        seed,
                        camera,
                        frame[key],
                        resize_ids(ids, size).numpy().astype(np.uint8),
                        resize_area(depth_to_disparity(depth), size).numpy(),
                    )
                )
    world.close()
    return samples


def look(segmenter: Segmenter, sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
    """The segmenter's ids and disparity of one sample."""
    image = torch.from_numpy(sample.rgb).permute(2, 0, 1)[None].float() / 255
    scores, size = segmenter(image), sample.ids.shape
    disparity = scores.disparity_map(size)[0].numpy() if segmenter.gives_disparity else None
    return scores.ids(size)[0].numpy(), disparity


def confusion(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(truth, found) pixel counts."""
    return np.bincount(CLASSES * truth.ravel().astype(int) + found.ravel(), minlength=CLASSES**2).reshape(
        CLASSES, -1
    )


def ious(counts: np.ndarray) -> np.ndarray:
    """Intersection over union per class, NaN where a class does not occur in the truth."""
    hit = np.diag(counts).astype(float)
    union = counts.sum(0) + counts.sum(1) - hit
    return np.where(counts.sum(1) > 0, hit / np.maximum(union, 1), np.nan)


def summary(samples: list[Sample], counts: list[np.ndarray], names: tuple[str, ...]) -> dict:
    """Per-class and mean IoU with bootstrap intervals over recordings."""
    recordings = sorted({sample.recording for sample in samples})
    per_recording = np.array(
        [
            sum(c for sample, c in zip(samples, counts, strict=True) if sample.recording == recording)
            for recording in recordings
        ]
    )
    rng = np.random.default_rng(0)
    draws = [
        ious(per_recording[rng.integers(0, len(recordings), len(recordings))].sum(0)) for _ in range(1000)
    ]
    total = ious(per_recording.sum(0))

    def entry(value: float, drawn: list[float]) -> dict:
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        return {"iou": round(float(value), 4), "bootstrap95": [round(float(low), 4), round(float(high), 4)]}

    result = {
        name: entry(total[id_], [d[id_] for d in draws])
        for id_, name in enumerate(names)
        if not np.isnan(total[id_])
    }
    return {"mean": entry(np.nanmean(total), [np.nanmean(d) for d in draws]), "classes": result}


def baselines(samples: list[Sample]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By camera, the most frequent class and the mean disparity of each pixel."""
    found = {}
    for camera in CAMERAS:
        ids = np.stack([sample.ids for sample in samples if sample.camera == camera])
        votes = np.stack([(ids == id_).sum(0) for id_ in range(CLASSES)])
        disparity = np.mean([sample.disparity for sample in samples if sample.camera == camera], axis=0)
        found[camera] = (votes.argmax(0), disparity)
    return found


def worst_frames(
    segmenter: Segmenter, samples: list[Sample], scores: list[float], path: Path, count: int = 10
) -> None:
    """Draw the frames with the lowest mean IoU: picture, truth, answer."""
    rows = []
    for index in np.argsort(scores)[:count]:
        sample = samples[index]
        found, _ = look(segmenter, sample)
        panels = [
            sample.rgb,
            *(overlay(sample.rgb, ids, segmenter.class_names) for ids in (sample.ids, found)),
        ]
        row = np.hstack(panels)
        label = f"{sample.camera}, recording {sample.recording}, IoU {scores[index]:.2f}"
        rows.append(
            cv2.putText(
                np.ascontiguousarray(row),
                label,
                (6, row.shape[0] - 8),
                0,
                0.5,
                (255, 255, 255),
                1,
                cv2.LINE_AA,
            )
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [np.vstack(rows[half::2]) for half in range(2)]
    Image.fromarray(np.hstack(columns)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--segmenter", default="workbench")
    parser.add_argument("--recordings", type=int, default=30)
    parser.add_argument(
        "--picture", type=int, nargs=2, default=(240, 320), metavar=("H", "W"), help="what the camera gives"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(120, 160), metavar=("H", "W"), help="where ids are compared"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)  # one small picture at a time: threads would wait for each other
    segmenter = make_segmenter(args.segmenter)
    picture, size = tuple(args.picture), tuple(args.size)
    guesses = baselines(
        record("randomised", range(BASELINE_SEED, BASELINE_SEED + args.recordings), picture, size)
    )
    rows, results = [], {}
    for level in LEVELS:
        samples = record(level, range(FIRST_SEED, FIRST_SEED + args.recordings), picture, size)
        answers = [look(segmenter, sample) for sample in tqdm(samples, "segmenting")]
        counts = [confusion(sample.ids, ids) for sample, (ids, _) in zip(samples, answers, strict=True)]
        blind = [confusion(sample.ids, guesses[sample.camera][0]) for sample in samples]
        result = {
            "frames": len(samples),
            **summary(samples, counts, segmenter.class_names),
            "baseline": summary(samples, blind, segmenter.class_names),
            "disparity_error": {
                "segmenter": _error(
                    [(s.disparity, d) for s, (_, d) in zip(samples, answers, strict=True) if d is not None]
                ),
                "baseline": _error([(s.disparity, guesses[s.camera][1]) for s in samples]),
                "unit": "mean absolute error, 0..255",
            },
        }
        results[level] = result
        for arm, found in (("segmenter", result), ("baseline", result["baseline"])):
            cells = [
                f"{found['classes'].get(name, {}).get('iou', float('nan')):.3f}"
                for name in segmenter.class_names[1:]
            ]
            error = result["disparity_error"][arm]
            rows.append(
                [level, arm, f"{found['mean']['iou']:.3f}", *cells, "-" if error is None else f"{error:.1f}"]
            )
        if level == "randomised":
            path = Path("outputs/segmenter_worst.png")
            worst_frames(segmenter, samples, [float(np.nanmean(ious(c))) for c in counts], path)
            print("ten worst frames in", path)
    print(table(["level", "arm", "mean IoU", *segmenter.class_names[1:], "disparity error"], rows))
    setting = {
        "recordings": args.recordings,
        "picture": picture,
        "size": size,
        "identity": segmenter.identity.to_dict(),
    }
    print("written to", save("segmenter", {"setting": setting, "levels": results}))


def _error(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float | None:
    return round(float(np.mean([np.abs(a - b).mean() for a, b in pairs])), 2) if pairs else None


if __name__ == "__main__":
    main()
