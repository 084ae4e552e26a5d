# SPDX-License-Identifier: Apache-2.0
"""The suite's own segmenter as a transformers model, which this module registers with the Auto classes."""

from transformers import AutoConfig, AutoModelForSemanticSegmentation

from .configuration_efficientvit_fpn import CLASS_NAMES, EfficientViTFPNConfig
from .modeling_efficientvit_fpn import EfficientViTFPNForSemanticSegmentation, SegmenterOutput, soft_iou_loss

AutoConfig.register(EfficientViTFPNConfig.model_type, EfficientViTFPNConfig, exist_ok=True)
AutoModelForSemanticSegmentation.register(
    EfficientViTFPNConfig, EfficientViTFPNForSemanticSegmentation, exist_ok=True
)

__all__ = [
    "CLASS_NAMES",
    "EfficientViTFPNConfig",
    "EfficientViTFPNForSemanticSegmentation",
    "SegmenterOutput",
    "soft_iou_loss",
]
