# SPDX-License-Identifier: Apache-2.0
"""The models of `benchmarks.perception`: published checkpoints with random weights, made without a download.

Sizes and image processors are those of the published files; speed and memory do not depend on the weights. SAM 3
(0.84 B parameters at 1008 pixels) is left out: too large for the machines this is meant for.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import CLIPTokenizer, PreTrainedModel

from lerobot_processor_so101.efficientvit_fpn import (
    EfficientViTFPNConfig,
    EfficientViTFPNForSemanticSegmentation,
)

hf: Any = transformers  # its configurations confuse mypy

TEXTS = ("red cube", "gripper", "table", "plate", "bowl")
ADE20K = 150  # classes
IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

type Made = tuple[PreTrainedModel, Any]


@dataclass(frozen=True)
class Published:
    """One model.

    Attributes:
        checkpoint: whose size and processor this has.
        parameters: how many it has; checked when it is made.
        make: gives the model and its processor; may write to the folder.
        task: of transformers' pipeline; empty where it has none for this model.
        classes: what an open-vocabulary segmenter looks for.
    """

    checkpoint: str
    parameters: int
    make: Callable[[Path], Made]
    task: str = ""
    classes: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Make the model and save it with its processor.

        Raises:
            ValueError: it has not the published number of parameters.
        """
        model, processor = self.make(folder)
        found = sum(parameter.numel() for parameter in model.parameters())
        if found != self.parameters:
            raise ValueError(f"{self.checkpoint}: found {found:,} parameters, expected {self.parameters:,}.")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def mask2former(folder: Path) -> Made:
    """Swin-L of ImageNet-22k at 384 pixels, 100 queries."""
    swin = hf.SwinConfig(
        image_size=384,
        embed_dim=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=12,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = hf.Mask2FormerConfig(backbone_config=swin.to_dict(), num_labels=ADE20K)
    processor = hf.Mask2FormerImageProcessor(
        size={"height": 384, "width": 384}, num_labels=ADE20K, **IMAGENET
    )
    return hf.Mask2FormerForUniversalSegmentation(config), processor


def eomt(folder: Path) -> Made:
    """DINOv2 ViT-L, 100 queries; square windows of 512 pixels, two for a 4:3 picture."""
    config = hf.EomtConfig(image_size=512, num_queries=100, num_labels=ADE20K)
    size = {"shortest_edge": 512, "longest_edge": None}
    processor = hf.EomtImageProcessor(size=size, do_split_image=True, do_pad=False, **IMAGENET)
    return hf.EomtForUniversalSegmentation(config), processor


def segformer(folder: Path) -> Made:
    """transformers' defaults are those of B0."""
    config = hf.SegformerConfig(num_labels=ADE20K)
    processor = hf.SegformerImageProcessor(size={"height": 512, "width": 512}, **IMAGENET)
    return hf.SegformerForSemanticSegmentation(config), processor


def clipseg(folder: Path) -> Made:
    """CLIP ViT-B/16 at 352 pixels with the refined decoder."""
    tokenizer = word_tokenizer(folder)
    config = hf.CLIPSegConfig(
        text_config={"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
        vision_config={"patch_size": 16},
        reduce_dim=64,
        use_complex_transposed_convolution=True,
    )
    images = hf.ViTImageProcessor(size={"height": 352, "width": 352}, **IMAGENET)
    return hf.CLIPSegForImageSegmentation(config), hf.CLIPSegProcessor(images, tokenizer)


def word_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer to which each word of the texts is one token, as to the published one."""
    tokens: list[str] = []
    merges = ["#version: 0.2"]
    for word in sorted({word for text in TEXTS for word in text.split()}):
        whole, *rest = [*word[:-1], f"{word[-1]}</w>"]
        tokens += [whole, *rest]
        for letter in rest:
            merges.append(f"{whole} {letter}")
            whole += letter
            tokens.append(whole)
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: id_ for id_, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(merges))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def depth_anything(folder: Path) -> Made:
    """DINOv2 ViT-S; pictures keep their shape, 518 x 686 for 480 x 640."""
    backbone = hf.Dinov2Config(
        hidden_size=384,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        out_features=["stage3", "stage6", "stage9", "stage12"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = hf.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
    )
    processor = hf.DPTImageProcessor(
        size={"height": 518, "width": 518},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        resample=3,
        **IMAGENET,
    )
    return hf.DepthAnythingForDepthEstimation(config), processor


def efficientvit_fpn(height: int, width: int, disparity_head: bool = False) -> Callable[[Path], Made]:
    """The suite's own; without a disparity head it has all parameters of the original, used or not."""

    def make(folder: Path) -> Made:
        config = EfficientViTFPNConfig(unused_convs=not disparity_head, disparity_head=disparity_head)
        processor = hf.ViTImageProcessor(size={"height": height, "width": width}, **IMAGENET)
        return EfficientViTFPNForSemanticSegmentation(config), processor

    return make


MODELS = {
    "efficientvit_fpn 480x640": Published("seed 001, 640x480", 846_838, efficientvit_fpn(480, 640)),
    "efficientvit_fpn 480x640 + disparity": Published(
        "seed 001 with a disparity head", 754_167, efficientvit_fpn(480, 640, disparity_head=True)
    ),
    "efficientvit_fpn 84x84": Published("seed 001, 84x84", 846_838, efficientvit_fpn(84, 84)),
    "efficientvit_fpn 84x84 + disparity": Published(
        "seed 001 with a disparity head", 754_167, efficientvit_fpn(84, 84, disparity_head=True)
    ),
    "segformer-b0": Published(
        "nvidia/segformer-b0-finetuned-ade-512-512", 3_752_694, segformer, "image-segmentation"
    ),
    "depth-anything-v2-small": Published(
        "depth-anything/Depth-Anything-V2-Small-hf", 24_785_089, depth_anything, "depth-estimation"
    ),
    "clipseg": Published("CIDAS/clipseg-rd64-refined", 150_747_746, clipseg, classes=TEXTS),
    "mask2former-swin-large": Published(
        "facebook/mask2former-swin-large-ade-semantic", 215_488_779, mask2former, "image-segmentation"
    ),
    "eomt-large": Published(
        "tue-mps/ade20k_semantic_eomt_large_512", 316_020_887, eomt, "image-segmentation"
    ),
}
