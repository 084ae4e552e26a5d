# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.perception` measures, in a process of its own so that memory is the model's alone.

A way is a function of cameras' pictures; a product is what it must give. Ours take tensors, as a policy has them,
transformers' pipelines take PIL pictures.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.pipelines import depth_estimation, image_segmentation  # noqa: F401  before memory is measured

from lerobot_processor_so101.depth_models import inverse_to_disparity, make_depth_estimator
from lerobot_processor_so101.efficientvit_fpn import (
    EfficientViTFPNForSemanticSegmentation,
    SegmenterOutput,
)
from lerobot_processor_so101.perception_model import keep_freed_memory
from lerobot_processor_so101.resize import resize_ids
from lerobot_processor_so101.segmenters import make_segmenter

from .clock import peak_memory
from .perception_models import MODELS, Published

hf: Any = transformers  # its overloads confuse mypy

CAMERA = (480, 640)
PRODUCTS = {"84x84": (84, 84), "480x640": CAMERA, "logits": None}  # None is the size of the model's input
SUITE, ORIGINAL, ORDER, TRANSFORMERS = "suite", "original", "original order alone", "transformers"
TOLERANCE = 1e-5

type Look = Callable[[list[Any]], Any]


class OriginalOrder(EfficientViTFPNForSemanticSegmentation):
    """The decoder as seed 001 runs it: all four output convolutions, then the 64 features are enlarged to the size
    of the input, then the classifier runs on each of its pixels."""

    def forward(self, pixel_values: Tensor, *_: Any, **__: Any) -> SegmenterOutput:
        """Logits at full resolution."""
        levels = [
            lateral(f) for lateral, f in zip(self.lateral_convs, self.backbone(pixel_values), strict=True)
        ]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + _enlarge(levels[i], levels[i - 1].shape[-2:])
        decoded = [conv(level) for conv, level in zip(self.output_convs, levels, strict=True)]
        return SegmenterOutput(logits=self.seg_head(_enlarge(decoded[0], pixel_values.shape[-2:])))


def suite(model: Published, folder: str, product: str) -> Look:
    """One call for all cameras, as the suite's steps do."""
    size = PRODUCTS[product]
    if model.task == "depth-estimation":
        estimator = make_depth_estimator(folder)
        return lambda cameras: [
            inverse_to_disparity(maps, size or CAMERA) for maps in estimator.estimate(cameras)
        ]
    segmenter = make_segmenter(folder, model.classes)

    def look(cameras: list[Tensor]) -> list[Any]:
        found = segmenter.segment(cameras)
        if size is None:
            return [_enlarge(scores.as_logits(), segmenter.identity.input_size) for scores in found]
        if segmenter.gives_disparity:
            return [(scores.ids(size), scores.disparity_map(size)) for scores in found]
        return [scores.ids(size) for scores in found]

    return look


def original(model: Published, folder: str, product: str) -> Look:
    """The original's layers and order behind the suite's preparation."""
    return _original(OriginalOrder.from_pretrained(folder).eval(), folder, product)


def original_order(model: Published, folder: str, product: str) -> Look:
    """The same in the suite's memory layout and with its memory kept, so that the order alone is compared."""
    keep_freed_memory()
    network = OriginalOrder.from_pretrained(folder).eval().to(memory_format=torch.channels_last)
    return _original(network, folder, product)


def _original(network: OriginalOrder, folder: str, product: str) -> Look:
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    size = PRODUCTS[product]

    @torch.no_grad()
    def look(cameras: list[Tensor]) -> list[Tensor]:
        pixels = processor(
            images=[picture for camera in cameras for picture in camera],
            do_rescale=False,
            return_tensors="pt",
            disable_grouping=True,
        )["pixel_values"]
        network.to(cameras[0].device)
        logits = network(pixels.to(cameras[0].device)).logits
        if size is None:
            return list(logits.split(1))
        return [resize_ids(resize_ids(ids, CAMERA), size) for ids in logits.argmax(1).split(1)]

    return look


def plain_transformers(model: Published, folder: str, product: str) -> Look:
    """The library's pipeline with its defaults; where there is none, the calls of the model's documentation."""
    if model.classes:
        return _plain_clipseg(model, folder)
    options = {"subtask": "semantic"} if model.task == "image-segmentation" else {}
    pipe = hf.pipeline(model.task, model=folder, device=_device())
    return lambda cameras: pipe([_picture(camera) for camera in cameras], **options)


def _plain_clipseg(model: Published, folder: str) -> Look:
    processor = hf.AutoProcessor.from_pretrained(folder)
    network = hf.CLIPSegForImageSegmentation.from_pretrained(folder).eval().to(_device())

    @torch.no_grad()
    def look(cameras: list[Tensor]) -> list[Tensor]:
        answers = []
        for camera in cameras:
            pictures = [_picture(camera)] * len(model.classes)
            inputs = processor(text=list(model.classes), images=pictures, padding=True, return_tensors="pt")
            logits = network(**inputs.to(_device())).logits[None]
            answers.append(_enlarge(logits, CAMERA).argmax(1).cpu())
        return answers

    return look


WAYS = {SUITE: suite, ORIGINAL: original, ORDER: original_order, TRANSFORMERS: plain_transformers}


def combinations(name: str) -> list[tuple[str, str]]:
    """The (way, product) pairs to measure for a model."""
    pairs = [(SUITE, "84x84"), (SUITE, "480x640")]
    if name.startswith("efficientvit"):
        if "disparity" not in name:
            pairs += [
                (SUITE, "logits"),
                *((way, product) for way in (ORIGINAL, ORDER) for product in PRODUCTS),
            ]
    else:
        pairs.append((TRANSFORMERS, "480x640"))
    return pairs


def measure(name: str, way: str, product: str, folder: str, device: str, seconds: float) -> dict[str, Any]:
    """Milliseconds and peak memory of one way.

    Returns:
        By number of cameras: median milliseconds per call, calls, and MB beyond what the process had before it
        loaded the model (CPU) or that PyTorch had allocated at most (GPU).
    """
    cameras = [camera.to(device) for camera in _pictures()]
    before = peak_memory(device)
    look = WAYS[way](MODELS[name], folder, product)
    result: dict[str, Any] = {}
    for count in (1, 2):
        times = _time(look, cameras[:count], seconds)
        result[f"cameras_{count}"] = {
            "ms": round(1000 * statistics.median(times), 2),
            "ms_fastest": round(1000 * min(times), 2),
            "calls": len(times),
            "memory_mb": round(peak_memory(device) - before, 1),
        }
    if way == ORIGINAL and product == "logits":
        result["difference"] = _difference(name, folder, cameras, look)
    return result


def _time(look: Look, cameras: list[Tensor], seconds: float) -> list[float]:
    """Seconds of each call, after warm-up, until they sum up to `seconds`: two calls at least."""
    look(cameras)
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        _finish_gpu()
        start = time.perf_counter()
        look(cameras)
        _finish_gpu()
        times.append(time.perf_counter() - start)
    return times


def _difference(name: str, folder: str, cameras: list[Tensor], original: Look) -> float:
    """Largest difference of both orders' logits at full resolution.

    Raises:
        ValueError: it is above the tolerance.
    """
    ours = WAYS[SUITE](MODELS[name], folder, "logits")(cameras)
    pairs = zip(ours, original(cameras), strict=True)
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    if cameras[0].device.type == "cpu" and difference > TOLERANCE:
        raise ValueError(f"{name}: the two orders differ by {difference:g}, expected at most {TOLERANCE:g}.")
    return difference


def _pictures() -> list[Tensor]:
    """Two cameras' pictures, smooth enough to be resized without surprises, (1, 3, 480, 640) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 12, 16, generator=generator)
    return list(_enlarge(coarse, CAMERA).clamp(0, 1).split(1))


def _picture(camera: Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray((camera[0].permute(1, 2, 0) * 255).cpu().numpy().astype(np.uint8))


def _enlarge(maps: Tensor, size: Any) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _device() -> str:
    return "cuda" if torch.cuda.is_initialized() else "cpu"


def _finish_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
