# SPDX-License-Identifier: Apache-2.0
"""Segmenters with fixed classes: semantic (one score map per class) and universal (queries) ones."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel
from transformers.image_transforms import get_size_with_aspect_ratio

from ..perception.scores import Scores
from . import onnx_runtime
from .base import Region
from .efficientvit_fpn import EfficientViTFPNForSemanticSegmentation
from .efficientvit_fpn.single_objects import keep_largest_regions
from .segmenter import Segmenter

UNIVERSAL = ("mask2former", "maskformer", "eomt", "eomt_dinov3")


def query_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Compute evidence per class and pixel, (B, C, h, w) float32 >= 0, from a universal model's queries.

    S = sum over queries of softmax(class, without the null class) x sigmoid(mask). S is neither a
    distribution nor logits: use log(S + eps) where a softmax follows (`Scores.as_logits`).

    Args:
        class_logits: (B, Q, C + 1), the last class is "no object".
        mask_logits: (B, Q, h, w).
    """
    with torch.autocast(mask_logits.device.type, enabled=False):  # which would sum in bfloat16
        classes = class_logits.float().softmax(-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", classes, mask_logits.float().sigmoid())


class SemanticSegmenter(Segmenter):
    """SegFormer, UPerNet, BEiT and the like, and the suite's own: logits per class."""

    def __init__(self, name: str, model: PreTrainedModel, processor: Any) -> None:
        super().__init__(name, model, processor)
        self._faster: onnx_runtime.OnnxRuntimeModel | None = None
        if isinstance(model, EfficientViTFPNForSemanticSegmentation) and onnx_runtime.is_available():
            self._faster = onnx_runtime.OnnxRuntimeModel(model)

    def score(self, inputs: BatchFeature) -> Scores:
        """Return logits on the model's grid, and disparity if the model has that head."""
        outputs: Any = (self._faster or self.model)(pixel_values=inputs["pixel_values"])
        disparity = outputs.get("disparity")
        disparity = disparity if disparity is None else disparity.float()
        logits = outputs.logits.float()
        is_single = getattr(self.model, "is_single", None)
        if is_single is not None:
            logits = keep_largest_regions(logits, is_single)
        return Scores(logits, "logits", self.class_names, disparity)


class UniversalSegmenter(Segmenter):
    """Mask2Former and MaskFormer: evidence summed over queries."""

    def score(self, inputs: BatchFeature) -> Scores:
        """Return evidence on the grid of the mask logits."""
        outputs = self.model(pixel_values=inputs["pixel_values"])
        evidence = query_scores(outputs.class_queries_logits, outputs.masks_queries_logits)
        return Scores(evidence, "probs", self.class_names)


class PaddingSegmenter(UniversalSegmenter):
    """EoMT for panoptic segmentation: images keep their shape and are padded to a square, right and below."""

    disabled = ("do_center_crop",)

    def image_region(self, inputs: BatchFeature, size: torch.Size) -> Region:
        """Return the image's share of the square; computed, since the image processor does not return it."""
        edges: Any = self.processor.size
        height, width = get_size_with_aspect_ratio(size, edges.shortest_edge, edges.longest_edge)
        padded_height, padded_width = inputs["pixel_values"].shape[-2:]
        return 0.0, 0.0, height / padded_height, width / padded_width


class SlidingWindowSegmenter(UniversalSegmenter):
    """EoMT for semantic segmentation: square windows slide along the longer side; their evidence is averaged
    where they overlap. The windows of all images form one batch.
    """

    def align(self, scores: Scores, inputs: BatchFeature, size: torch.Size) -> Scores:
        """Merge the windows of each image."""
        # (image, start, end) of each window, in order
        offsets = torch.stack(list(inputs["patch_offsets"])).tolist()
        spans = tuple((start, end) for image, start, end in offsets if image == 0)
        values = scores.values.unflatten(0, (-1, len(spans)))  # (B, windows, C, h, w)
        portrait = size[0] > size[1]
        if portrait:
            values = values.mT
        weights = torch.from_numpy(_window_weights(spans, values.shape[-1])).to(values)
        values = torch.einsum("bnchw,nwl->bchl", values, weights)
        return replace(scores, values=values.mT if portrait else values)


@lru_cache
def _window_weights(spans: tuple[tuple[int, int], ...], cells: int) -> np.ndarray:
    """Compute the weight of each cell of each window in each cell of the image, (windows, cells, length)."""
    # a mean of the windows (first pixel, end) that cover a cell's centre, each interpolated linearly
    pixels, end = spans[0][1] - spans[0][0], spans[-1][1]
    length = round(end * cells / pixels)
    centres = (np.arange(length) + 0.5) * end / length  # pixels
    starts = np.array([start for start, _ in spans])[:, None]
    inside = (centres >= starts) & (centres < starts + pixels)  # (windows, length)
    position = np.clip((centres - starts) * cells / pixels - 0.5, 0, cells - 1)
    weights = np.maximum(1 - np.abs(position[:, None] - np.arange(cells)[:, None]), 0) * inside[:, None]
    return (weights / inside.sum(0)).astype(np.float32)


def universal(name: str, model: PreTrainedModel, processor: Any) -> UniversalSegmenter:
    """Create a universal segmenter that fits how the image processor makes images square."""
    if getattr(processor, "do_split_image", False):
        return SlidingWindowSegmenter(name, model, processor)
    if model.config.model_type.startswith("eomt") and processor.do_pad:
        return PaddingSegmenter(name, model, processor)
    return UniversalSegmenter(name, model, processor)
