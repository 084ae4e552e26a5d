# SPDX-License-Identifier: Apache-2.0
"""`so101-precompute` beside the loop one would write, and what its stored forms cost.

    python -m benchmarks.precompute

Writes demonstrations of the workbench (two cameras, 640x480, video), then looks at them with the EfficientViT-FPN at
480x640 with random weights: once in the plain way (`dataset[i]`, transform, one frame at a time through the
original's decoder order, nothing stored) and once by `so101-precompute`, which also stores, in turns. Wall time and
processor time count everything but the loading of models: a busy machine blurs the former. Then bytes per frame and
camera of each stored form, and what reading costs.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
import transformers as hf
from lerobot.datasets import LeRobotDataset

from lerobot_env_so101_workbench.demos import DemosConfig, record
from lerobot_processor_so101.disparity import depth_to_disparity
from lerobot_processor_so101.efficientvit_fpn import (
    EfficientViTFPNConfig,
    EfficientViTFPNForSemanticSegmentation,
)
from lerobot_processor_so101.identity import ModelIdentity
from lerobot_processor_so101.precompute import command
from lerobot_processor_so101.precompute.columns import Column
from lerobot_processor_so101.precompute.config import PrecomputeConfig
from lerobot_processor_so101.resize import resize_ids
from lerobot_processor_so101.stored import encode_disparity

from .perception_ways import OriginalOrder
from .report import save, table

SIZE = (480, 640)
CAMERAS = ("top", "wrist")
CHUNK = 50


def save_model(folder: Path) -> str:
    """The suite's segmenter with the original's parameters."""
    torch.manual_seed(0)
    processor = hf.ViTImageProcessor(
        size={"height": SIZE[0], "width": SIZE[1]},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    EfficientViTFPNForSemanticSegmentation(EfficientViTFPNConfig(unused_convs=True)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def timed(work: Callable[[], int]) -> dict[str, float]:
    """Frames per second of wall and of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    frames = work()
    return {
        "wall": frames / (time.perf_counter() - wall),
        "processor": frames / (time.process_time() - cpu),
    }


@torch.no_grad()
def plain_loop(
    dataset: LeRobotDataset, network: OriginalOrder, processor: hf.ViTImageProcessor, frames: int
) -> int:
    """One frame of one camera at a time."""
    for index in range(frames):
        item = dataset[index]
        for camera in CAMERAS:
            inputs = processor(item[f"observation.images.{camera}"], do_rescale=False, return_tensors="pt")
            ids = network(inputs["pixel_values"]).logits.argmax(1)
            resize_ids(ids, (84, 84))
    return frames


def precomputed(config: PrecomputeConfig) -> dict[str, float]:
    """All of `so101-precompute` after the models are there: reading, looking, storing, assembling."""
    job, models = command.prepare(config)

    def work() -> int:
        job.open()
        command.run(config, job, models)
        command.assemble(job)
        return sum(episode.length for episode in job.source.episodes)

    return timed(work)


def read_ms(dataset: LeRobotDataset, key: str, count: int = 100) -> float:
    """Milliseconds to read one stored key of one frame."""
    column = dataset.hf_dataset.select_columns([key])
    start = time.perf_counter()
    for index in range(count):
        column[index % len(column)]
    return 1000 * (time.perf_counter() - start) / count


def sample_ms(root: Path, count: int = 40) -> float:
    """Milliseconds to read a training sample with a chunk of actions."""
    deltas = {"action": [step / 30 for step in range(CHUNK)]}
    dataset = LeRobotDataset("local/bench", root=root, delta_timestamps=deltas)
    start = time.perf_counter()
    for index in range(count):
        dataset[index % len(dataset)]
    return 1000 * (time.perf_counter() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="demonstrations to use instead of new ones")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain_frames", type=int, default=30, help="how much of the plain loop is run")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        root = options.root or work / "demos"
        if options.root is None:
            record(DemosConfig(root=root, episodes=3, height=SIZE[0], width=SIZE[1]))
        result = measure(root, work, options.repeats, options.plain_frames)
    print(f"\nwritten to {save('precompute', result)}")


def measure(root: Path, work: Path, repeats: int, plain_frames: int) -> dict:
    """All numbers."""
    model = save_model(work / "model")
    network = OriginalOrder.from_pretrained(model).eval()
    processor = hf.ViTImageProcessor.from_pretrained(model)
    dataset = LeRobotDataset("local/bench", root=root)
    plain, ours = [], []
    plain_loop(dataset, network, processor, 2)
    for number in range(repeats):
        plain.append(timed(lambda: plain_loop(dataset, network, processor, plain_frames)))
        ours.append(precomputed(PrecomputeConfig(root=root, output=work / f"ids{number}", segmenter=model)))
        shutil.rmtree(work / f"ids{number - 1}", ignore_errors=True)
    speed = {
        name: {
            clock: round(statistics.median(run[clock] for run in runs), 2) for clock in ("wall", "processor")
        }
        for name, runs in (("plain loop", plain), ("so101-precompute", ours))
    }
    speed["ratio"] = {
        clock: round(speed["so101-precompute"][clock] / speed["plain loop"][clock], 2)
        for clock in ("wall", "processor")
    }
    print(table(["frames of two cameras per second", "wall", "processor"],
                [[name, f"{v['wall']}", f"{v['processor']}"] for name, v in speed.items()]))  # fmt: skip

    costs = {**stored_forms(root, work, model), **true_maps(work)}
    print(table(["stored form", "bytes per frame", "read ms"],
                [[key, f"{v['bytes']:,}", str(v.get("read_ms", ""))] for key, v in costs.items()]))  # fmt: skip
    ids_only = work / f"ids{repeats - 1}"
    samples = {"without": round(sample_ms(root), 1), "with ids of two cameras": round(sample_ms(ids_only), 1)}
    print(table([f"sample with a chunk of {CHUNK} actions", "ms"], [[k, str(v)] for k, v in samples.items()]))
    return {"frames_per_second": speed, "stored": costs, "sample_ms": samples, "chunk": CHUNK}


def stored_forms(root: Path, work: Path, model: str) -> dict[str, dict[str, float]]:
    """Bytes and reading of each form of one camera, from scores of a random model: noisier than any trained one's."""
    # Of logits at 512 every frame is 3 MB with six classes (and 79 MB with the 150 of ADE20K).
    config = PrecomputeConfig(
        root=root,
        output=work / "stored",
        segmenter=model,
        forms=["ids", "top_k", "logits"],
        cameras=["top"],
        logits_size=128,
    )
    job, models = command.prepare(config)
    job.open()
    command.run(config, job, models)
    tallies = job.tallies()
    command.assemble(job)
    result = LeRobotDataset("local/bench", root=config.output)
    return {
        key: {"bytes": round(t.sums["bytes"] / t.sums["frames"]), "read_ms": round(read_ms(result, key), 2)}
        for key, t in tallies.items()
    }


def true_maps(work: Path) -> dict[str, dict[str, float]]:
    """Bytes of the simulator's own masks and disparity at 84x84, which have the edges that real ones have."""
    record(
        DemosConfig(
            root=work / "truth", episodes=2, height=84, width=84, rgb=False, seg=True, depth=True, video=False
        )
    )
    dataset = LeRobotDataset("local/truth", root=work / "truth")
    column = Column("k", "top", "ids", (84, 84), (84, 84, 1), ModelIdentity("simulator", ""))
    maps: dict[str, list[torch.Tensor]] = {"true ids, 84x84": [], "true disparity, 84x84": []}
    for item in (dataset[index] for index in range(len(dataset))):
        for camera in CAMERAS:
            maps["true ids, 84x84"].append(item[f"observation.images.{camera}_seg"])
            disparity = depth_to_disparity(item[f"observation.images.{camera}_depth"])
            maps["true disparity, 84x84"].append(encode_disparity(disparity[0]))
    return {
        name: {"bytes": round(column.encode(torch.stack(planes).numpy()).nbytes / len(planes))}
        for name, planes in maps.items()
    }


if __name__ == "__main__":
    main()
