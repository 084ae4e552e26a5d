# SPDX-License-Identifier: Apache-2.0
"""The suite's own segmenter: EfficientViT-B0 with a feature pyramid, 0.74 M parameters.

What is unusual about it:
- The classifier runs on the finest level (stride 4) and the *scores* are enlarged, not the 64 features. A 1x1
  convolution and bilinear interpolation commute, so the result is that of the original order, with a tenth of
  its memory.
- Of the decoder's output convolutions only the finest is used. The original also runs the other three and
  discards the results; `unused_convs` keeps their parameters (they never run), so that its checkpoints load.
- Names of parameters are the original's, so that its checkpoints load without a table of renames.
- An optional second head predicts disparity from the same features, in the same pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ...perception.class_map import ordered_labels
from .configuration_efficientvit_fpn import EfficientViTFPNConfig

FEATURE_LEVELS = (0, 1, 2, 3)  # of the backbone: strides 4, 8, 16 and 32


@dataclass
class SegmenterOutput(ModelOutput):
    """Output of the segmenter."""

    loss: Tensor | None = None  # scalar, if there are labels
    logits: Tensor | None = None  # (B, C, ceil(H/4), ceil(W/4))
    disparity: Tensor | None = None  # (B, ceil(H/4), ceil(W/4)) in [0, 1], near = 1, if there is that head


class EfficientViTFPNForSemanticSegmentation(PreTrainedModel):
    """EfficientViT-B0 and a top-down feature pyramid, with outputs at stride 4."""

    config_class = EfficientViTFPNConfig
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: EfficientViTFPNConfig) -> None:
        super().__init__(config)
        # Weights come from a checkpoint or are random: nothing is downloaded here.
        self.backbone = timm.create_model(
            config.backbone, pretrained=False, features_only=True, out_indices=FEATURE_LEVELS
        )
        dim = config.decoder_dim
        channels: list[int] = self.backbone.feature_info.channels()  # type: ignore[operator, union-attr]
        self.lateral_convs = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in channels)
        levels = len(channels) if config.unused_convs else 1
        self.output_convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.BatchNorm2d(dim), nn.ReLU())
            for _ in range(levels)
        )
        self.seg_head = nn.Conv2d(dim, config.num_labels, 1)
        if config.single_objects:  # a buffer, so that it is part of the model's identity
            is_single = [name in config.single_objects for name in ordered_labels(config)]
            self.register_buffer("is_single", torch.tensor(is_single))
        if config.disparity_head:
            self.disparity_head = nn.Sequential(
                nn.Conv2d(dim, dim // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(dim // 2, 1, 1)
            )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the initialisation of PyTorch and timm, as the original does."""

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, disparity_labels: Tensor | None = None
    ) -> SegmenterOutput:
        """Segment a batch of normalised images.

        Args:
            pixel_values: (B, 3, H, W), ImageNet-normalised RGB.
            labels: (B, h, w) integer class ids of any size, at which the loss is computed.
            disparity_labels: (B, h, w) in [0, 1]; adds the mean absolute error of the disparity.

        Raises:
            ValueError: if there are `disparity_labels` but no disparity head.
        """
        # 1. encode: (B, 3, H, W) -> features at strides 4, 8, 16 and 32
        features = self.backbone(pixel_values)
        # 2. decode: (B, D, H/4, W/4)
        decoded = self.decode(features)
        # 3. classify: (B, C, H/4, W/4)
        logits = self.seg_head(decoded)
        # 4. predict disparity: (B, H/4, W/4)
        disparity = None
        if self.config.disparity_head:
            disparity = self.disparity_head(decoded).squeeze(1).sigmoid()
        elif disparity_labels is not None:
            raise ValueError(
                "disparity_labels: this model has no disparity head, expected `disparity_head=True`."
            )
        # 5. loss at the size of the labels, in float32: it sums over all pixels
        loss = None
        if labels is not None:
            enlarged = _enlarge(logits.float(), labels.shape[-2:])
            parts = [_LOSSES[name](enlarged, labels.long()) for name in self.config.loss.split("+")]
            loss = torch.stack(parts).sum()
            if disparity is not None and disparity_labels is not None:
                enlarged = _enlarge(disparity[:, None].float(), labels.shape[-2:])[:, 0]
                loss = loss + F.l1_loss(enlarged, disparity_labels)
        return SegmenterOutput(loss=loss, logits=logits, disparity=disparity)

    def decode(self, features: list[Tensor]) -> Tensor:
        """Add coarse features to the next finer level, down to the finest, (B, decoder_dim, H/4, W/4)."""
        top_down = self.lateral_convs[-1](features[-1])
        for lateral, feature in zip(self.lateral_convs[-2::-1], features[-2::-1], strict=True):
            top_down = lateral(feature) + _enlarge(top_down, feature.shape[-2:])
        return self.output_convs[0](top_down)


def soft_iou_loss(logits: Tensor, labels: Tensor, over_batch: bool = False) -> Tensor:
    """One minus the soft intersection over union, averaged over the classes of each image.

    Absent classes are excluded from the mean. The original counts them as a constant 0, which changes no
    gradient but distorts the value. So a false object costs hardly anything in an image without such an
    object, unless the areas are those of the whole batch.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) integer class ids.
        over_batch: add the areas of each class up over the batch.
    """
    probabilities = logits.softmax(1).flatten(2)  # (B, C, HW)
    truth = F.one_hot(labels.flatten(1), logits.shape[1]).mT.to(probabilities.dtype)
    if over_batch:  # (1, C, B * HW)
        probabilities, truth = (maps.transpose(0, 1).flatten(1)[None] for maps in (probabilities, truth))
    intersection = (probabilities * truth).sum(-1)
    union = probabilities.sum(-1) + truth.sum(-1) - intersection
    present = truth.sum(-1) > 0
    return 1 - (intersection / union.clamp(min=1e-6))[present].mean()


def _enlarge(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": soft_iou_loss,
    "batch_iou": partial(soft_iou_loss, over_batch=True),
    "ce": F.cross_entropy,
}
