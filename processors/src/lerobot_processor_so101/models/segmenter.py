# SPDX-License-Identifier: Apache-2.0
"""The interface of a segmenter."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import BatchFeature

from ..perception.class_map import ClassMap, ordered_labels
from ..perception.scores import Scores
from .base import PerceptionModel, crop_interpolated, run_batched


class Segmenter(PerceptionModel):
    """Computes per-class scores of images, on the model's own grid."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; position = id."""
        return ordered_labels(self.model.config)

    @property
    def class_map(self) -> ClassMap:
        """Class ids by name."""
        return ClassMap(self.class_names, self.name)

    @property
    def predicts_disparity(self) -> bool:
        """Whether the scores contain disparity."""
        return bool(getattr(self.model.config, "disparity_head", False))

    def forward(self, images: Tensor) -> Scores:
        """Segment one batch, (B, 3, H, W) in [0, 1]."""
        return self.segment([images])[0]

    @torch.no_grad()
    def segment(self, batches: Sequence[Tensor]) -> list[Scores]:
        """Segment several batches, such as one per camera, in one model call where their sizes allow.

        Args:
            batches: (B, 3, H, W) each, in [0, 1].

        Raises:
            ValueError: as `check_images`.
        """
        inputs = [self.prepare(images) for images in batches]
        outputs = run_batched(self.score, Scores.rows, inputs)
        return [
            self.align(scores, prepared, images.shape[-2:])
            for scores, prepared, images in zip(outputs, inputs, batches, strict=True)
        ]

    @abstractmethod
    def score(self, inputs: BatchFeature) -> Scores:
        """Run the model on prepared images."""

    def align(self, scores: Scores, inputs: BatchFeature, size: torch.Size) -> Scores:
        """Convert scores of the prepared images to scores of the original ones of `size`, without padding."""
        return replace(scores, values=crop_interpolated(scores.values, self.image_region(inputs, size)))
