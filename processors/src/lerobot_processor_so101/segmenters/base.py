# SPDX-License-Identifier: Apache-2.0
"""The contract of a segmenter."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import BatchFeature

from ..class_map import ClassMap
from ..perception_model import PerceptionModel, cut_region, in_batches
from ..scores import ScoreKind, Scores


class Segmenter(PerceptionModel):
    """Pictures in, per-class scores on the model's own grid out.

    Attributes:
        kind: what the scores are.
    """

    kind: ScoreKind

    @property
    def class_map(self) -> ClassMap:
        """Look-up of class names."""
        return ClassMap(self.class_names, self.name)

    @property
    def gives_disparity(self) -> bool:
        """Whether the scores come with a disparity."""
        return bool(getattr(self.model.config, "disparity_head", False))

    def forward(self, images: Tensor) -> Scores:
        """Segment one batch, (B, 3, H, W) in [0, 1]."""
        return self.segment([images])[0]

    @torch.no_grad()
    def segment(self, batches: Sequence[Tensor]) -> list[Scores]:
        """Segment several batches, such as one per camera, in one call of the model where sizes allow.

        Args:
            batches: (B, 3, H, W) each, in [0, 1].

        Returns:
            One `Scores` per batch.

        Raises:
            ValueError: pictures of another shape, dtype or range, or with NaN.
        """
        inputs = [self.prepare(images) for images in batches]
        answers = in_batches(self.score, Scores.rows, inputs)
        return [
            self.on_picture(scores, prepared, (images.shape[-2], images.shape[-1]))
            for scores, prepared, images in zip(answers, inputs, batches, strict=True)
        ]

    @abstractmethod
    def score(self, inputs: BatchFeature) -> Scores:
        """Run the model on prepared pictures."""

    def on_picture(self, scores: Scores, inputs: BatchFeature, size: tuple[int, int]) -> Scores:
        """From scores of the prepared pictures to scores of the pictures: cut away what was padded.

        Args:
            scores: what `score` answered.
            inputs: from `prepare`.
            size: (H, W) of the pictures.
        """
        return replace(scores, values=cut_region(scores.values, self.picture_region(inputs, size)))
