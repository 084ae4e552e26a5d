# SPDX-License-Identifier: Apache-2.0
"""The contract of a segmenter."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import BatchFeature

from ..class_map import ClassMap
from ..perception_model import PerceptionModel, check_images, in_batches
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
        """Whether the scores come with disparity."""
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
        for images in batches:
            check_images(images)
        self.to_device_of(batches[0])
        return in_batches(self.score, Scores.rows, [self.prepare(images) for images in batches])

    @abstractmethod
    def score(self, inputs: BatchFeature) -> Scores:
        """Run the model on prepared pictures."""
