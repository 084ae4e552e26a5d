# SPDX-License-Identifier: Apache-2.0
"""Segmenters with fixed classes from transformers: semantic ones (one score map per class) and universal ones
(queries, each with a class and a mask)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel

from ..perception_model import check_images
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
    """Mask2Former, MaskFormer and EoMT: evidence summed over queries."""

    kind: ScoreKind = "probs"

    def score(self, inputs: BatchFeature) -> Scores:
        """Evidence on the grid of the mask logits."""
        outputs = self.model(pixel_values=inputs["pixel_values"])
        return Scores(
            query_scores(outputs.class_queries_logits, outputs.masks_queries_logits),
            self.kind,
            self.class_names,
        )

    def prepare(self, images: Tensor) -> BatchFeature:
        """Resize and normalise; EoMT's windows are handled by `SlidingWindowSegmenter`."""
        inputs = super().prepare(images)
        mask = inputs.get("pixel_mask")
        if mask is not None and not bool(mask.all()):
            raise ValueError(
                f"{self.name}: its image processor pads pictures of {tuple(images.shape[-2:])}, so that masks would "
                "not lie on the picture. Set its size to a fixed height and width."
            )
        return inputs


class SlidingWindowSegmenter(UniversalSegmenter):
    """EoMT for semantic segmentation: square windows slide along the longer side and are averaged where they overlap."""

    @torch.no_grad()
    def segment(self, batches: Sequence[Tensor]) -> list[Scores]:
        """See `Segmenter.segment`; the windows of all batches go through the model together."""
        for images in batches:
            check_images(images)
        self.to_device_of(batches[0])
        return [self._merged(images) for images in batches]

    def _merged(self, images: Tensor) -> Scores:
        size: Any = self.processor.size
        inputs = self.prepare(images)
        windows = inputs["pixel_values"]
        scores = self.score(inputs).values
        scores = F.interpolate(scores, size=windows.shape[-2:], mode="bilinear", align_corners=False)
        height, width = images.shape[-2:]
        grid = windows.shape[-1] // 4 / min(height, width)
        targets = [(round(height * grid), round(width * grid))] * len(images)
        merged = self.processor.merge_image_patches(scores, inputs["patch_offsets"], targets, size)
        return Scores(torch.stack([m.reshape(m.shape[-3:]) for m in merged]), self.kind, self.class_names)


def universal(name: str, model: PreTrainedModel, processor: Any) -> UniversalSegmenter:
    """Choose by whether the image processor cuts pictures into windows."""
    windows = getattr(processor, "do_split_image", False)
    return (SlidingWindowSegmenter if windows else UniversalSegmenter)(name, model, processor)
