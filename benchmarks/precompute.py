# SPDX-License-Identifier: Apache-2.0
"""`so101-precompute` beside the loop one would write, and what its stored forms cost.

    python -m benchmarks.precompute

Writes demonstrations of the workbench (two cameras, 640x480, video), then looks at them with the EfficientViT-FPN at
480x640 with random weights: in the plain way (`dataset[i]`, transform, one frame at a time through the original's
decoder order, nothing stored), in the plain way with memory kept (glibc told not to give it back, as
`so101-precompute` does), and by `so101-precompute`, which also stores. They take turns, each in a process of its own. Wall time
and processor time count everything but the loading of models: a busy machine blurs the former. Then bytes per frame
and camera of each stored form, and what reading costs.
"""

import argparse
import json
import logging
import shutil
import statistics
import subprocess
import sys
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
from lerobot_processor_so101.precompute.work import keep_memory
from lerobot_processor_so101.resize import resize_ids
from lerobot_processor_so101.scores import Scores
from lerobot_processor_so101.stored import encode_disparity, encode_top_k

from .perception_ways import OriginalOrder
from .report import save, table

SIZE = (480, 640)
CAMERAS = ("top", "wrist")
CHUNK = 50
CLOCKS = ("wall", "processor")
PLAIN, KEPT, OURS = "plain loop", "plain loop, memory kept", "so101-precompute"


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


def precomputed(config: PrecomputeConfig) -> Callable[[], int]:
    """All of `so101-precompute` after the models are there: reading, looking, storing, assembling."""
    job, models = command.prepare(config)

    def work() -> int:
        job.open()
        command.run(config, job, models)
        command.assemble(job)
        return sum(episode.length for episode in job.source.episodes)

    return work


def one_way(way: str, root: Path, model: str, output: Path, frames: int) -> dict[str, float]:
    """Speed of one way, in this process."""
    if way == OURS:
        return timed(precomputed(PrecomputeConfig(root=root, output=output, segmenter=model)))
    if way == KEPT:
        keep_memory()
    network = OriginalOrder.from_pretrained(model).eval()
    processor = hf.ViTImageProcessor.from_pretrained(model)
    dataset = LeRobotDataset("local/bench", root=root)
    plain_loop(dataset, network, processor, 2)
    return timed(lambda: plain_loop(dataset, network, processor, frames))


def compare(root: Path, work: Path, model: str, repeats: int, frames: int) -> dict[str, dict[str, float]]:
    """Median speed of each way, over processes that take turns."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in (PLAIN, KEPT, OURS)}
    for _ in range(repeats):
        for way, found in runs.items():
            shutil.rmtree(work / "ids", ignore_errors=True)
            arguments = ["--way", way, "--root", root, "--model", model, "--output", work / "ids"]
            process = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.precompute",
                    *map(str, arguments),
                    "--plain_frames",
                    str(frames),
                ],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found.append(json.loads(process.stdout.splitlines()[-1]))
    return {
        way: {clock: round(statistics.median(run[clock] for run in found), 2) for clock in CLOCKS}
        for way, found in runs.items()
    }


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
    for name in ("way", "model", "output"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    if options.way:
        speed = one_way(options.way, options.root, options.model, Path(options.output), options.plain_frames)
        print(json.dumps(speed))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        root = options.root or work / "demos"
        if options.root is None:
            record(DemosConfig(root=root, episodes=3, height=SIZE[0], width=SIZE[1]))
        result = measure(root, work, options.repeats, options.plain_frames)
    print(f"\nwritten to {save('precompute', result)}")


def measure(root: Path, work: Path, repeats: int, frames: int) -> dict:
    """All numbers."""
    model = save_model(work / "model")
    speed = compare(root, work, model, repeats, frames)
    rows = [
        [way, *(str(v[c]) for c in CLOCKS), *(f"{speed[OURS][c] / v[c]:.1f}" for c in CLOCKS)]
        for way, v in speed.items()
    ]
    print(table(["frames of two cameras per second", *CLOCKS, "ours / this, wall", "processor"], rows))
    costs = {**stored_forms(root, work, model), **true_maps(work), **many_classes()}
    rows = [[key, f"{v['bytes']:,}", str(v.get("read_ms", ""))] for key, v in costs.items()]
    print(table(["stored form", "bytes per frame", "read ms"], rows))
    samples = {
        "without": round(sample_ms(root), 1),
        "with ids of two cameras": round(sample_ms(work / "ids"), 1),
    }
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
    column = Column("k", "top", "ids", (84, 84), (84, 84, 1), ModelIdentity("simulator", ""), (84, 84))
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


def many_classes() -> dict[str, dict[str, float]]:
    """Bytes with the 150 classes of ADE20K, from noise: no picture compresses worse."""
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(150))
    noise = Scores(torch.randn(20, 150, 128, 128), "logits", names)
    column = Column("k", "top", "top_k", (32, 32), (10, 1025, 1), ModelIdentity("noise", ""), (84, 84))
    top_k = column.encode(encode_top_k(*noise.top_k(10, (32, 32))).numpy())
    dense = Column("k", "top", "logits", (512, 512), (150, 512, 512), ModelIdentity("noise", ""), (84, 84))
    return {
        "top-10 of 150 classes, 32x32": {"bytes": round(top_k.nbytes / 20)},
        "raw logits of 150 classes, 512x512": {"bytes": dense.logits_bytes},
    }


if __name__ == "__main__":
    main()
