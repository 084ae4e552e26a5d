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
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import torch
import transformers as hf
from lerobot.datasets import LeRobotDataset

from lerobot_env_so101_workbench.demos.command import DemosConfig, record
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

CAMERAS = ("top", "wrist")
CHUNK = 50
TIMES = ("wall", "processor")
PLAIN, KEPT, OURS = "plain loop", "plain loop, memory kept", "so101-precompute"


def timed(work: Callable[[], int]) -> dict[str, float]:
    """Return frames per second of wall and of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    frames = work()
    return {"wall": frames / (time.perf_counter() - wall), "processor": frames / (time.process_time() - cpu)}


def quiet() -> None:
    """Log errors only."""
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()


def computed(config: PrecomputeConfig) -> Callable[[], Any]:
    """Prepare `so101-precompute`; return a function that computes everything and returns the job."""
    job, models = command.prepare(config)

    def compute() -> Any:
        job.open()
        command.run(config, job, models)
        return job

    return compute


def speed_of(way: str, root: Path, model: str, output: Path, frames: int) -> dict[str, float]:
    """Return the speed of one way, in this process."""
    quiet()
    if way == OURS:
        compute = computed(PrecomputeConfig(root=root, output=output, segmenter=model))

        def precompute() -> int:
            job = compute()
            command.assemble(job)
            return sum(episode.length for episode in job.source.episodes)

        return timed(precompute)
    if way == KEPT:
        keep_freed_memory()
    network = OriginalOrder.from_pretrained(model).eval()
    processor = hf.ViTImageProcessor.from_pretrained(model)
    dataset = LeRobotDataset("local/bench", root=root)

    @torch.no_grad()
    def loop(count: int) -> int:
        for index in range(count):
            item = dataset[index]
            for camera in CAMERAS:
                image = item[f"observation.images.{camera}"]
                inputs = processor(image, do_rescale=False, return_tensors="pt")
                resize_ids(network(inputs["pixel_values"]).logits.argmax(1), (84, 84))
        return count

    loop(2)
    return timed(lambda: loop(frames))


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


def samples(root: Path, with_ids: Path) -> list[dict[str, Any]]:
    """Return the milliseconds to read a training sample with a chunk of actions."""
    deltas, rows = {"action": [step / 30 for step in range(CHUNK)]}, []
    for name, folder in (("without", root), ("with ids of two cameras", with_ids)):
        dataset = LeRobotDataset("local/bench", root=folder, delta_timestamps=deltas)
        rows.append({"part": "training sample", "of": name, "ms": round(read_ms(dataset, 40), 1)})
    return rows


def stored_forms(root: Path, output: Path, model: str) -> list[dict[str, Any]]:
    """Return bytes and reading time of each form of one camera, from a random, noisy model."""
    # At 512, logits of every frame are 3 MB with six classes (and 79 MB with the 150 of ADE20K).
    options = {"forms": ["ids", "top_k", "logits"], "cameras": ["top"], "logits_size": 128}
    job = computed(PrecomputeConfig(root=root, output=output, segmenter=model, **options))()
    tallies = job.tallies()
    command.assemble(job)
    rows = LeRobotDataset("local/bench", root=output).hf_dataset
    return [
        stored(key, t.sums["bytes"] / t.sums["frames"])
        | {"read_ms": round(read_ms(rows.select_columns([key]), 100), 2)}
        for key, t in tallies.items()
    ]


def true_maps(root: Path) -> list[dict[str, Any]]:
    """Return the bytes of the simulator's own masks and disparity at 84x84, whose edges are realistic."""
    size = {"height": 84, "width": 84, "rgb": False, "seg": True, "depth": True, "video": False}
    record(DemosConfig(root=root, episodes=2, **size))
    ids, disparity = [], []
    for item in LeRobotDataset("local/truth", root=root):
        for key in (f"observation.images.{camera}" for camera in CAMERAS):
            ids.append(item[f"{key}_seg"])
            disparity.append(encode_disparity(depth_to_disparity(item[f"{key}_depth"])[0]))
    column = column_of("ids", (84, 84), (84, 84, 1))
    return [
        stored(f"true {name}, 84x84", column.encode(torch.stack(planes).numpy()).nbytes / len(planes))
        for name, planes in (("ids", ids), ("disparity", disparity))
    ]


def many_classes() -> list[dict[str, Any]]:
    """Return the bytes with the 150 classes of ADE20K, from noise: no image compresses worse."""
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(150))
    noise = Scores(torch.randn(20, 150, 128, 128), "logits", names)
    top_k = column_of("top_k", (32, 32), (10, 1025, 1))
    encoded = top_k.encode(encode_top_k(*noise.top_k(10, (32, 32))).numpy())
    dense = column_of("logits", (512, 512), (150, 512, 512)).logits_bytes
    found = {"top-10 of 150 classes, 32x32": encoded.nbytes / 20, "raw logits of 150 classes, 512x512": dense}
    return [stored(form, size) for form, size in found.items()]


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
        rows += samples(root, ids)
    save("speed/precompute", rows, (), {**vars(options), "chunk": CHUNK})
    show(rows, "part", "of", *TIMES, "bytes", "read_ms", "ms")


if __name__ == "__main__":
    main()
