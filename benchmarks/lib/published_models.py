# SPDX-License-Identifier: Apache-2.0
"""Published perception models with random weights, made without a download.

Sizes and image processors are those of the published files; speed and memory do not depend on the weights.
SAM 3 (0.84 B parameters at 1008 pixels) is left out: it is too large for the machines that the suite is meant
for.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
import transformers as hf
from torch import Tensor

from lerobot_processor_so101.models.efficientvit_fpn import (
    EfficientViTFPNConfig,
    EfficientViTFPNForSemanticSegmentation,
    SegmenterOutput,
)

TEXTS = ("red cube", "gripper", "table", "plate", "bowl")
SEGMENTATION = "image-segmentation"
ADE20K = 150  # classes
IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

type Made = tuple[hf.PreTrainedModel, Any]


class Published(NamedTuple):
    """One model; its task is that of transformers' pipeline, its classes are texts for an open vocabulary."""

    checkpoint: str  # whose size and processor this has
    parameters: int
    make: Callable[[], Made]
    task: str = ""
    classes: tuple[str, ...] = ()

    def save(self, folder: Path) -> str:
        """Make the model, check its number of parameters, save it with its processor; return the folder."""
        model, processor = self.make()
        found = model.num_parameters()
        if found != self.parameters:
            raise ValueError(f"{self.checkpoint}: found {found:,} parameters, expected {self.parameters:,}.")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return str(folder)


def mask2former() -> Made:
    """Make Swin-L of ImageNet-22k at 384 pixels, 100 queries."""
    stages = {"depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12, "embed_dim": 192}
    out = ["stage1", "stage2", "stage3", "stage4"]
    swin = hf.SwinConfig(image_size=384, out_features=out, **stages)
    config = hf.Mask2FormerConfig(backbone_config=swin.to_dict(), num_labels=ADE20K)
    size = {"height": 384, "width": 384}
    processor = hf.Mask2FormerImageProcessor(size=size, num_labels=ADE20K, **IMAGENET)
    return hf.Mask2FormerForUniversalSegmentation(config), processor


def eomt() -> Made:
    """Make DINOv2 ViT-L with 100 queries; square windows of 512 pixels, two for a 4:3 image."""
    config = hf.EomtConfig(image_size=512, num_queries=100, num_labels=ADE20K)
    size = {"shortest_edge": 512, "longest_edge": None}
    processor = hf.EomtImageProcessor(size=size, do_split_image=True, do_pad=False, **IMAGENET)
    return hf.EomtForUniversalSegmentation(config), processor


def segformer() -> Made:
    """Make B0, which transformers' defaults are."""
    config = hf.SegformerConfig(num_labels=ADE20K)
    processor = hf.SegformerImageProcessor(size={"height": 512, "width": 512}, **IMAGENET)
    return hf.SegformerForSemanticSegmentation(config), processor


def clipseg() -> Made:
    """Make CLIP ViT-B/16 at 352 pixels with the refined decoder; a word of the texts is one token."""
    tokenizer = hf.CLIPTokenizer(model_max_length=77).train_new_from_iterator(TEXTS, 1000)
    text = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    decoder = {"reduce_dim": 64, "use_complex_transposed_convolution": True}
    config = hf.CLIPSegConfig(text_config=text, vision_config={"patch_size": 16}, **decoder)
    images = hf.ViTImageProcessor(size={"height": 352, "width": 352}, **IMAGENET)
    return hf.CLIPSegForImageSegmentation(config), hf.CLIPSegProcessor(images, tokenizer)


def depth_anything() -> Made:
    """Make DINOv2 ViT-S with its depth head; images keep their shape, 518 x 686 for 480 x 640."""
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
    out = {"out_features": ["stage3", "stage6", "stage9", "stage12"], "reshape_hidden_states": False}
    neck = {"reassemble_hidden_size": 384, "neck_hidden_sizes": [48, 96, 192, 384], "fusion_hidden_size": 64}
    backbone = hf.Dinov2Config(**sizes, **out, apply_layernorm=True)
    config = hf.DepthAnythingConfig(backbone_config=backbone, **neck)
    shape = {"size": {"height": 518, "width": 518}, "keep_aspect_ratio": True, "ensure_multiple_of": 14}
    return hf.DepthAnythingForDepthEstimation(config), hf.DPTImageProcessor(**shape, resample=3, **IMAGENET)


def efficientvit_fpn(height: int, width: int, disparity_head: bool) -> Made:
    """Make the suite's own; without a disparity head it has all parameters of the original, used or not."""
    config = EfficientViTFPNConfig(unused_convs=not disparity_head, disparity_head=disparity_head)
    processor = hf.ViTImageProcessor(size={"height": height, "width": width}, **IMAGENET)
    return EfficientViTFPNForSemanticSegmentation(config), processor


MODELS = {
    f"efficientvit_fpn {height}x{width}{' + disparity' * head}": Published(
        f"the original at {height}x{width}" if not head else "with a disparity head",
        754_167 if head else 846_838,
        partial(efficientvit_fpn, height, width, head),
    )
    for height, width in ((480, 640), (84, 84))
    for head in (False, True)
} | {
    "segformer-b0": Published(
        "nvidia/segformer-b0-finetuned-ade-512-512", 3_752_694, segformer, SEGMENTATION
    ),
    "depth-anything-v2-small": Published(
        "depth-anything/Depth-Anything-V2-Small-hf", 24_785_089, depth_anything, "depth-estimation"
    ),
    "clipseg": Published("CIDAS/clipseg-rd64-refined", 150_747_746, clipseg, classes=TEXTS),
    "mask2former-swin-large": Published(
        "facebook/mask2former-swin-large-ade-semantic", 215_488_779, mask2former, SEGMENTATION
    ),
    "eomt-large": Published("tue-mps/ade20k_semantic_eomt_large_512", 316_020_887, eomt, SEGMENTATION),
}


class OriginalOrder(EfficientViTFPNForSemanticSegmentation):
    """The suite's segmenter, computing as the original does.

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
