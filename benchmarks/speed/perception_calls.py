# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.speed.perception` measures, in a process of its own so that memory is the model's alone.

An implementation maps cameras' images to an output. Ours take tensors, as a policy has them, transformers'
pipelines take PIL images.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from torch import Tensor
from transformers.pipelines import depth_estimation, image_segmentation  # noqa: F401  before measuring

from lerobot_processor_so101.models import make_segmenter
from lerobot_processor_so101.models.depth import inverse_to_disparity, make_depth_estimator
from lerobot_processor_so101.models.memory import keep_freed_memory
from lerobot_processor_so101.perception.resize import resize_ids

from ..lib.clock import finish_gpu, in_turn, peak_memory
from ..lib.original_decoder import OriginalOrder, upsample
from ..lib.published_models import MODELS, Published

hf: Any = transformers  # its overloads confuse mypy

CAMERA = (480, 640)
OUTPUTS = {"84x84": (84, 84), "480x640": CAMERA, "logits": None}  # None is the size of the model's input
SUITE, ORIGINAL, ORDER, TRANSFORMERS = "suite", "original", "original order alone", "transformers"
TOLERANCE = 1e-5

type Call = Callable[[list[Any]], Any]


def suite(model: Published, folder: str, output: str) -> Call:
    """One call for all cameras, as the suite's steps do."""
    size = OUTPUTS[output]
    keep_freed_memory()  # as the steps do
    if model.task == "depth-estimation":
        estimator = make_depth_estimator(folder)
        return lambda cameras: [
            inverse_to_disparity(maps, size or CAMERA) for maps in estimator.estimate(cameras)
        ]
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
    """The original's layers and order behind the suite's preparation.

    Args:
        model, folder, output: as `suite` has them.
        only_order: use the suite's memory layout, and keep freed memory, so that the order alone is compared.
    """
    network = OriginalOrder.from_pretrained(folder).eval()
    if only_order:
        keep_freed_memory()
        network = network.to(memory_format=torch.channels_last)
    processor, size = hf.AutoImageProcessor.from_pretrained(folder), OUTPUTS[output]

    @torch.no_grad()
    def call(cameras: list[Tensor]) -> list[Tensor]:
        images = [image for camera in cameras for image in camera]
        options = {"do_rescale": False, "return_tensors": "pt", "disable_grouping": True}
        device = cameras[0].device
        pixels = processor(images=images, **options)["pixel_values"].to(device)
        logits = network.to(device)(pixels).logits
        if size is None:
            return list(logits.split(1))
        return [resize_ids(resize_ids(ids, CAMERA), size) for ids in logits.argmax(1).split(1)]

    return call


def plain_transformers(model: Published, folder: str, output: str) -> Call:
    """The library's pipeline with its defaults, or the calls of the model's documentation."""
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
    return [*pairs, (SUITE, "logits"), *((way, output) for way in (ORIGINAL, ORDER) for output in OUTPUTS)]


def measure(
    name: str, implementation: str, output: str, folder: str, device: str, seconds: float
) -> dict[str, Any]:
    """Return milliseconds and peak memory of one implementation.

    Returns:
        By number of cameras: median and smallest milliseconds per call, calls (two at least), and MB beyond
            what the process had before it loaded the model (CPU) or that PyTorch had allocated at most (GPU).
    """
    cameras = [camera.to(device) for camera in smooth_images()]
    before = peak_memory(device)
    call = IMPLEMENTATIONS[implementation](MODELS[name], folder, output)
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    for count in (1, 2):
        works = {"call": lambda count=count: call(cameras[:count])}
        times = in_turn(works, 2, finish_gpu)["call"]
        times += in_turn(works, int((1000 * seconds - sum(times)) / median(times)), finish_gpu)["call"]
        result[f"cameras_{count}"] = {
            "ms": round(median(times), 2),
            "ms_fastest": round(min(times), 2),
            "calls": len(times),
            "memory_mb": round(peak_memory(device) - before, 1),
        }
    if implementation == ORIGINAL and output == "logits":
        result["difference"] = difference(name, folder, cameras, call)
    return result


def difference(name: str, folder: str, cameras: list[Tensor], original: Call) -> float:
    """Return the largest difference of both orders' logits at full resolution.

    Raises:
        ValueError: if it is above the tolerance, on a CPU.
    """
    ours = suite(MODELS[name], folder, "logits")(cameras)
    found = max(float((a - b).abs().max()) for a, b in zip(ours, original(cameras), strict=True))
    if cameras[0].device.type == "cpu" and found > TOLERANCE:
        raise ValueError(f"{name}: the two orders differ by {found:g}, expected at most {TOLERANCE:g}.")
    return found


def smooth_images() -> list[Tensor]:
    """Return images of two cameras, (1, 3, 480, 640) in [0, 1], smooth so that resizing is stable."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 12, 16, generator=generator)
    return list(upsample(coarse, CAMERA).clamp(0, 1).split(1))


def as_pil(camera: Tensor) -> PIL.Image.Image:
    """Convert (1, 3, H, W) in [0, 1]."""
    return PIL.Image.fromarray((camera[0].permute(1, 2, 0) * 255).cpu().numpy().astype(np.uint8))
