# SPDX-License-Identifier: Apache-2.0
"""Segmenters with fixed classes from transformers: semantic ones (one score map per class) and universal ones
(queries, each with a class and a mask)."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel
from transformers.image_transforms import get_size_with_aspect_ratio

from ..perception_model import Region
from ..scores import ScoreKind, Scores
from .base import Segmenter

UNIVERSAL = ("mask2former", "maskformer", "eomt", "eomt_dinov3")


def query_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Evidence per class and pixel from a model that answers with queries.

    S = sum over queries of softmax(class, without the null class) x sigmoid(mask). S is neither a distribution
    nor logits: take log(S + eps) where a softmax follows (`Scores.as_logits`).

    Args:
        class_logits: (B, Q, C + 1), the last class is "nothing".
        mask_logits: (B, Q, h, w).

    Returns:
        (B, C, h, w) float32 >= 0.
    """
    with torch.autocast(mask_logits.device.type, enabled=False):  # which would sum in bfloat16
        classes = class_logits.float().softmax(-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", classes, mask_logits.float().sigmoid())


class _FixedClasses(Segmenter):
    @property
    def class_names(self) -> tuple[str, ...]:
        """Names from the model's `id2label`."""
        labels = self.model.config.id2label
        return tuple(labels[id_] for id_ in sorted(labels))


class SemanticSegmenter(_FixedClasses):
    """SegFormer, UPerNet, BEiT and the like, and the suite's own: logits per class."""

    kind: ScoreKind = "logits"

    def score(self, inputs: BatchFeature) -> Scores:
        """Logits on the model's grid, and disparity where the model has that head."""
        outputs = self.model(pixel_values=inputs["pixel_values"])
        disparity = outputs.get("disparity")
        return Scores(
            outputs.logits.float(),
            self.kind,
            self.class_names,
            disparity if disparity is None else disparity.float(),
        )


class UniversalSegmenter(_FixedClasses):
    """Mask2Former and MaskFormer: evidence summed over queries."""

    kind: ScoreKind = "probs"

    def score(self, inputs: BatchFeature) -> Scores:
        """Evidence on the grid of the mask logits."""
        outputs = self.model(pixel_values=inputs["pixel_values"])
        return Scores(
            query_scores(outputs.class_queries_logits, outputs.masks_queries_logits),
            self.kind,
            self.class_names,
        )


class PaddingSegmenter(UniversalSegmenter):
    """EoMT for panoptic segmentation: pictures keep their shape and are padded to a square, right and below."""

    switched_off = ("do_center_crop",)

    def picture_region(self, inputs: BatchFeature, size: tuple[int, int]) -> Region:
        """The picture's share of the square, which the image processor does not tell."""
        edges: Any = self.processor.size
        height, width = get_size_with_aspect_ratio(size, edges.shortest_edge, edges.longest_edge)
        padded_height, padded_width = inputs["pixel_values"].shape[-2:]
        return 0.0, 0.0, height / padded_height, width / padded_width


class SlidingWindowSegmenter(UniversalSegmenter):
    """EoMT for semantic segmentation: square windows slide along the longer side; their evidence is averaged
    where they overlap. The windows of all pictures go through the model together."""

    def on_picture(self, scores: Scores, inputs: BatchFeature, size: tuple[int, int]) -> Scores:
        """Lay the windows of each picture beside each other."""
        offsets = torch.stack(
            list(inputs["patch_offsets"])
        ).tolist()  # (picture, start, end) of each window, in order
        spans = tuple((start, end) for picture, start, end in offsets if picture == 0)
        values = scores.values.unflatten(0, (-1, len(spans)))  # (B, windows, C, h, w)
        portrait = size[0] > size[1]
        if portrait:
            values = values.mT
        lay = torch.from_numpy(_window_weights(spans, values.shape[-1])).to(values)
        values = torch.einsum("bnchw,nwl->bchl", values, lay)
        return replace(scores, values=values.mT if portrait else values)


@lru_cache
def _window_weights(spans: tuple[tuple[int, int], ...], cells: int) -> np.ndarray:
    """How much each cell of each window counts in each cell of the whole, (windows, cells, length).

    Args:
        spans: first pixel and end of each window.
        cells: along one window.

    Returns:
        Weights that sum to 1 over windows and their cells: a mean of the windows that cover a cell's centre, each
        interpolated linearly.
    """
    pixels = spans[0][1] - spans[0][0]
    end = spans[-1][1]
    length = round(end * cells / pixels)
    centres = (np.arange(length) + 0.5) * end / length  # pixels
    starts = np.array([start for start, _ in spans])[:, None]
    inside = (centres >= starts) & (centres < starts + pixels)  # (windows, length)
    position = np.clip((centres - starts) * cells / pixels - 0.5, 0, cells - 1)
    weights = np.maximum(1 - np.abs(position[:, None] - np.arange(cells)[:, None]), 0) * inside[:, None]
    return (weights / inside.sum(0)).astype(np.float32)


def universal(name: str, model: PreTrainedModel, processor: Any) -> UniversalSegmenter:
    """Choose by how the image processor makes pictures square."""
    if getattr(processor, "do_split_image", False):
        return SlidingWindowSegmenter(name, model, processor)
    if model.config.model_type.startswith("eomt") and processor.do_pad:
        return PaddingSegmenter(name, model, processor)
    return UniversalSegmenter(name, model, processor)
