# SPDX-License-Identifier: Apache-2.0
"""The EfficientViT-FPN with its decoder in the order of the original project."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lerobot_processor_so101.models.efficientvit_fpn import (
    EfficientViTFPNForSemanticSegmentation,
    SegmenterOutput,
)


class OriginalOrder(EfficientViTFPNForSemanticSegmentation):
    """The segmenter, computing as the original does.

    All four output convolutions run, then the 64 features are upsampled to the size of the input, then the
    classifier runs on each of its pixels.
    """

    def forward(self, pixel_values: Tensor, *_: Any, **__: Any) -> SegmenterOutput:
        """Compute logits at full resolution."""
        features = self.backbone(pixel_values)
        levels = [lateral(f) for lateral, f in zip(self.lateral_convs, features, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + upsample(levels[i], levels[i - 1].shape[-2:])
        decoded = [conv(level) for conv, level in zip(self.output_convs, levels, strict=True)]
        return SegmenterOutput(logits=self.seg_head(upsample(decoded[0], pixel_values.shape[-2:])))


def upsample(maps: Tensor, size: Any) -> Tensor:
    """Resize maps bilinearly."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
