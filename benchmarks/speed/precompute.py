# SPDX-License-Identifier: Apache-2.0
"""Speed of `so101-precompute` beside a plain loop, and the cost of its stored forms.

    python -m benchmarks.speed.precompute

Records demonstrations in the workbench (two cameras, 640x480, video), and runs the EfficientViT-FPN at
480x640 with random weights on them in three ways: a plain loop (`dataset[i]`, transform, one frame at a time
through the original's decoder order, nothing stored), the plain loop with memory kept (glibc is set not to
return it, as in `so101-precompute`), and `so101-precompute`, which also stores. They take turns, each in a
process of its own. Wall and processor time exclude the loading of models; a busy machine blurs the former.
Then bytes per frame and camera of each stored form, and the time to read it.
"""

import logging
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import torch
import transformers as hf
from lerobot.datasets import LeRobotDataset

from lerobot_env_so101_workbench.demos.command import DemosConfig, record
from lerobot_processor_so101 import image_key
from lerobot_processor_so101.models.memory import keep_freed_memory
from lerobot_processor_so101.perception.disparity import depth_to_disparity
from lerobot_processor_so101.perception.identity import ModelIdentity
from lerobot_processor_so101.perception.resize import resize_ids
from lerobot_processor_so101.perception.scores import Scores
from lerobot_processor_so101.perception.stored import encode_disparity, encode_top_k
from lerobot_processor_so101.precompute import command
from lerobot_processor_so101.precompute.columns import Column
from lerobot_processor_so101.precompute.perception import PrecomputeConfig

from ..lib.clock import take_turns
from ..lib.published_models import MODELS, OriginalOrder
from ..lib.report import arguments, in_child, save, show

KEYS = (image_key("top"), image_key("wrist"))
CHUNK = 50
TIMES = ("wall", "processor")
PLAIN, KEPT, OURS = "plain loop", "plain loop, memory kept", "so101-precompute"


def quiet() -> None:
    """Log errors only."""
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()


@torch.no_grad()
def speed_of(way: str, root: Path, model: str, output: Path, frames: int) -> dict[str, float]:
    """Return the frames per second of wall and of processor time of one way, in this process."""
    quiet()
    if way == OURS:
        config = PrecomputeConfig(root=root, output=output, segmenter=model)
        job, models = command.prepare(config)
        frames = job.source.meta.total_frames
        wall, cpu = time.perf_counter(), time.process_time()
        job.open()
        command.run(config, job, models)
        command.assemble(job)
    else:
        if way == KEPT:
            keep_freed_memory()
        network = OriginalOrder.from_pretrained(model).eval()
        processor = hf.ViTImageProcessor.from_pretrained(model)
        dataset = LeRobotDataset("local/bench", root=root)
        for count in (2, frames):  # the first to warm up
            wall, cpu = time.perf_counter(), time.process_time()
            for index in range(count):
                item = dataset[index]
                for key in KEYS:
                    inputs = processor(item[key], do_rescale=False, return_tensors="pt")
                    resize_ids(network(inputs["pixel_values"]).logits.argmax(1), (84, 84))
    return {"wall": frames / (time.perf_counter() - wall), "processor": frames / (time.process_time() - cpu)}


def compare(root: Path, model: str, output: Path, repeats: int, frames: int) -> list[dict[str, Any]]:
    """Return the median speed of each way, over processes that take turns."""

    def run(way: str) -> dict[str, float]:
        shutil.rmtree(output, ignore_errors=True)
        return in_child(speed_of, way, root, model, output, frames)

    runs = take_turns((PLAIN, KEPT, OURS), repeats, run)
    return [
        {"part": "frames per second", "of": way}
        | {kind: round(median(run[kind] for run in found), 2) for kind in TIMES}
        for way, found in runs.items()
    ]


def read_ms(rows: Any, count: int) -> float:
    """Return the milliseconds to read one row."""
    begin = time.perf_counter()
    for index in range(count):
        rows[index % len(rows)]
    return 1000 * (time.perf_counter() - begin) / count


def stored_forms(root: Path, output: Path, model: str) -> list[dict[str, Any]]:
    """Return bytes and reading time of each form of one camera, from a random, noisy model."""
    # At 512, logits of every frame are 3 MB with six classes (and 79 MB with the 150 of ADE20K).
    options = {"forms": ["ids", "top_k", "logits"], "cameras": ["top"], "logits_size": 128}
    config = PrecomputeConfig(root=root, output=output, segmenter=model, **options)
    job, models = command.prepare(config)
    job.open()
    command.run(config, job, models)
    tallies = job.tallies()
    command.assemble(job)
    rows = LeRobotDataset("local/bench", root=output).hf_dataset
    return [
        stored(key, tally.sums["bytes"] / tally.sums["frames"])
        | {"read_ms": round(read_ms(rows.select_columns([key]), 100), 2)}
        for key, tally in tallies.items()
    ]


def true_maps(root: Path) -> list[dict[str, Any]]:
    """Return the bytes of the simulator's own masks and disparity at 84x84, whose edges are realistic."""
    size = {"height": 84, "width": 84, "rgb": False, "seg": True, "depth": True, "video": False}
    record(DemosConfig(root=root, episodes=2, **size))
    ids, disparity = [], []
    for item in LeRobotDataset("local/truth", root=root):
        for key in KEYS:
            ids.append(item[f"{key}_seg"])
            disparity.append(encode_disparity(depth_to_disparity(item[f"{key}_depth"])[0]))
    encode = column_of("ids", (84, 84), (84, 84, 1)).encode
    return [
        stored(f"true {name}, 84x84", encode(torch.stack(planes).numpy()).nbytes / len(planes))
        for name, planes in (("ids", ids), ("disparity", disparity))
    ]


def many_classes() -> list[dict[str, Any]]:
    """Return the bytes with the 150 classes of ADE20K, from noise: no image compresses worse."""
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(150))
    noise = Scores(torch.randn(20, 150, 128, 128), "logits", names)
    encode = column_of("top_k", (32, 32), (10, 1025, 1)).encode
    top_k = encode(encode_top_k(*noise.top_k(10, (32, 32))).numpy()).nbytes / 20
    dense = column_of("logits", (512, 512), (150, 512, 512)).logits_bytes
    return [
        stored("top-10 of 150 classes, 32x32", top_k),
        stored("raw logits of 150 classes, 512x512", dense),
    ]


def column_of(form: str, size: tuple[int, int], shape: tuple[int, int, int]) -> Column:
    """Return a column of one camera."""
    return Column("k", "top", form, size, shape, ModelIdentity("none", ""), (84, 84))


def stored(form: str, size: float) -> dict[str, Any]:
    """Return a row with the bytes of a stored form."""
    return {"part": "stored form", "of": form, "bytes": round(size)}


def main() -> None:
    options = arguments(__doc__, repeats=3, plain_frames=30)
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        root, ids = work / "demos", work / "ids"
        record(DemosConfig(root=root, episodes=3, height=480, width=640))
        torch.manual_seed(0)
        model = MODELS["efficientvit_fpn 480x640"].save(work / "model")
        rows = compare(root, model, ids, options.repeats, options.plain_frames)
        rows += [*stored_forms(root, work / "stored", model), *true_maps(work / "truth"), *many_classes()]
        deltas = {"action": [step / 30 for step in range(CHUNK)]}
        for of, read in (("without", root), ("with ids of two cameras", ids)):
            dataset = LeRobotDataset("local/bench", root=read, delta_timestamps=deltas)
            rows.append({"part": "training sample", "of": of, "ms": round(read_ms(dataset, 40), 1)})
    save("speed/precompute", rows, (), {**vars(options), "chunk": CHUNK})
    show(rows, "part", "of", *TIMES, "bytes", "read_ms", "ms")


if __name__ == "__main__":
    main()
