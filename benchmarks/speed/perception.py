# SPDX-License-Identifier: Apache-2.0
"""Milliseconds per call and peak memory of segmenters and depth models, for one and two 640x480 cameras.

    python -m benchmarks.speed.perception      (--models segformer-b0 clipseg, to measure some)

Every model has its published size and random weights. It is measured as the suite runs it (one call for all
cameras; on a GPU in bfloat16) and, in the same run, as its plain transformers pipeline does, or for the
suite's own segmenter with the decoder in the original's order. Every measurement is a process of its own, so
that its memory is known. Results are written after every model; rows that are not measured again stay.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers as hf
from torch import Tensor
from transformers.pipelines import depth_estimation, image_segmentation  # noqa: F401  before measuring

from lerobot_processor_so101.models import make_segmenter
from lerobot_processor_so101.models.depth import inverse_to_disparity, make_depth_estimator
from lerobot_processor_so101.models.memory import keep_freed_memory
from lerobot_processor_so101.perception.resize import resize_ids

from ..lib.clock import in_turn, peak_memory
from ..lib.published_models import MODELS, OriginalOrder, Published, upsample
from ..lib.report import arguments, in_child, save, table

KEYS = ("model", "device", "implementation", "output")
CAMERA = (480, 640)
OUTPUTS = {"84x84": (84, 84), "480x640": CAMERA, "logits": None}  # None is the size of the model's input
SUITE, ORIGINAL, ORDER, TRANSFORMERS = "suite", "original", "original order alone", "transformers"
TOLERANCE = 1e-5

# An implementation maps cameras' images, (1, 3, H, W) in [0, 1], to an output.
type Call = Callable[[list[Tensor]], Any]


def suite(model: Published, folder: str, output: str) -> Call:
    """One call for all cameras, as the suite's steps do."""
    size = OUTPUTS[output]
    keep_freed_memory()  # as the steps do
    if model.task == "depth-estimation":
        estimate = make_depth_estimator(folder).estimate
        return lambda cameras: [inverse_to_disparity(maps, size) for maps in estimate(cameras)]
    segmenter = make_segmenter(folder, model.classes)

    def call(cameras: list[Tensor]) -> list[Any]:
        found = segmenter.segment(cameras)
        if size is None:
            return [upsample(scores.as_logits(), segmenter.identity.input_size) for scores in found]
        if segmenter.predicts_disparity:
            return [(scores.ids(size), scores.disparity_map(size)) for scores in found]
        return [scores.ids(size) for scores in found]

    return call


def original(model: Published, folder: str, output: str, only_order: bool = False) -> Call:
    """The original's layers and order behind the suite's preparation."""
    network = OriginalOrder.from_pretrained(folder).eval()
    if only_order:  # in the suite's memory layout
        keep_freed_memory()
        network = network.to(memory_format=torch.channels_last)
    processor, size = hf.AutoImageProcessor.from_pretrained(folder), OUTPUTS[output]

    @torch.no_grad()
    def call(cameras: list[Tensor]) -> list[Tensor]:
        images, device = list(torch.cat(cameras)), cameras[0].device
        options = {"do_rescale": False, "return_tensors": "pt", "disable_grouping": True}
        logits = network.to(device)(processor(images, **options)["pixel_values"].to(device)).logits
        if size is None:
            return list(logits.split(1))
        return [resize_ids(resize_ids(ids, CAMERA), size) for ids in logits.argmax(1).split(1)]

    return call


def plain_transformers(model: Published, folder: str, output: str) -> Call:
    """The library's pipeline with its defaults on PIL images, or the calls of the model's documentation."""
    device = "cuda" if torch.cuda.is_initialized() else "cpu"
    if not model.classes:
        options = {"subtask": "semantic"} if model.task == "image-segmentation" else {}
        pipe = hf.pipeline(model.task, model=folder, device=device)
        return lambda cameras: pipe([as_pil(camera) for camera in cameras], **options)
    processor = hf.AutoProcessor.from_pretrained(folder)
    network = hf.CLIPSegForImageSegmentation.from_pretrained(folder).eval().to(device)

    @torch.no_grad()
    def clipseg(cameras: list[Tensor]) -> list[Tensor]:
        found = []
        for camera in cameras:
            images = [as_pil(camera)] * len(model.classes)
            inputs = processor(text=list(model.classes), images=images, padding=True, return_tensors="pt")
            logits = network(**inputs.to(device)).logits[None]
            found.append(upsample(logits, CAMERA).argmax(1).cpu())
        return found

    return clipseg


IMPLEMENTATIONS: dict[str, Callable[[Published, str, str], Call]] = {
    SUITE: suite,
    ORIGINAL: original,
    ORDER: partial(original, only_order=True),
    TRANSFORMERS: plain_transformers,
}


def combinations(name: str) -> list[tuple[str, str]]:
    """Return the (implementation, output) pairs to measure for a model."""
    pairs = [(SUITE, "84x84"), (SUITE, "480x640")]
    if not name.startswith("efficientvit"):
        return [*pairs, (TRANSFORMERS, "480x640")]
    if "disparity" in name:
        return pairs
    return [*pairs, (SUITE, "logits"), *product((ORIGINAL, ORDER), OUTPUTS)]


def make(name: str, folder: str) -> None:
    """Make and save a model."""
    hf.logging.set_verbosity_error()
    torch.manual_seed(0)
    MODELS[name].save(Path(folder))


def measure(
    name: str, implementation: str, output: str, folder: str, device: str, seconds: float
) -> dict[str, Any]:
    """Return milliseconds and peak memory of one implementation, by number of cameras.

    Memory [MB] is what the process needed beyond what it had before it loaded the model (CPU), or what
    PyTorch had allocated at most (GPU).
    """
    hf.logging.set_verbosity_error()
    # images of two cameras, (1, 3, 480, 640) in [0, 1], smooth so that resizing is stable
    coarse = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    cameras = list(upsample(coarse, CAMERA).clamp(0, 1).to(device).split(1))
    before = peak_memory(device)
    call = IMPLEMENTATIONS[implementation](MODELS[name], folder, output)
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    for count in (1, 2):
        works = {"call": partial(call, cameras[:count])}
        times = in_turn(works, 2)["call"]
        times += in_turn(works, int((1000 * seconds - sum(times)) / median(times)))["call"]
        found = {"ms": round(median(times), 2), "ms_fastest": round(min(times), 2), "calls": len(times)}
        result[f"cameras_{count}"] = {**found, "memory_mb": round(peak_memory(device) - before, 1)}
    if implementation == ORIGINAL and output == "logits":
        pairs = zip(suite(MODELS[name], folder, output)(cameras), call(cameras), strict=True)
        difference = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
        if device == "cpu" and difference > TOLERANCE:
            raise ValueError(f"{name}: found orders that differ by {difference:g}, expected {TOLERANCE:g}.")
        result["difference"] = difference
    return result


def as_pil(camera: Tensor) -> PIL.Image.Image:
    """Convert (1, 3, H, W) in [0, 1]."""
    return PIL.Image.fromarray((camera[0].permute(1, 2, 0) * 255).cpu().numpy().astype(np.uint8))


def rows_of(name: str, devices: list[str], seconds: float) -> list[dict]:
    """Make a model, and return one row per device, implementation and output."""
    model = {"model": name, "checkpoint": MODELS[name].checkpoint, "parameters": MODELS[name].parameters}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        in_child(make, name, folder)
        for device, (implementation, output) in product(devices, combinations(name)):
            found = in_child(measure, name, implementation, output, folder, device, seconds)
            case = {"device": device, "implementation": implementation, "output": output}
            rows.append({**model, **case, **found})
    return rows


def ratios(rows: list[dict]) -> list[list[Any]]:
    """Return how many times the suite is faster and smaller than its baseline, for the same output.

    Of the fastest calls: other load on the machine only ever adds to a call.
    """
    found = {tuple(row[key] for key in KEYS): row for row in rows}
    lines = []
    for (model, device, implementation, output), row in found.items():
        if implementation != SUITE:
            ours = found[model, device, SUITE, output]
            cases = product(("cameras_1", "cameras_2"), ("ms_fastest", "memory_mb"))
            values = [round(row[count][key] / ours[count][key], 2) for count, key in cases]
            lines.append([model, device, implementation, output, *values])
    return lines


def main() -> None:
    # seconds of calls in every measurement
    options = arguments(__doc__, {"models": MODELS}, seconds=5.0, models=list(MODELS))
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for name in options.models:
        measured = rows_of(name, devices, options.seconds)
        rows = save("speed/perception", measured, KEYS, vars(options))
    sides = [(key, count) for key in ("ms", "memory_mb") for count in ("cameras_1", "cameras_2")]
    cells = [[*(row[key] for key in KEYS), *(row[count][key] for key, count in sides)] for row in rows]
    print(table([*KEYS, "ms, 1 camera", "2 cameras", "MB, 1 camera", "2 cameras"], cells))
    print("The suite over others, in times:")
    names = ["faster, 1", "smaller, 1", "faster, 2", "smaller, 2"]
    print(table(["model", "device", "over", "output", *names], ratios(rows)))


if __name__ == "__main__":
    main()
