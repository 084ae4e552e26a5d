# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights, saved to a folder and loaded back through the real Auto classes.

Each function takes a folder, saves a model with its (image) processor there, and returns the folder as a
string: `make_segmenter(tiny_mask2former(tmp_path))`. Nothing is downloaded; each takes some milliseconds.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf  # imports a model when it is asked for, not before
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import make_pre_post_processors

from lerobot_processor_so101.models.efficientvit_fpn import (
    EfficientViTFPNConfig,
    EfficientViTFPNForSemanticSegmentation,
)

LABELS = ("wall", "floor", "table", "plate", "box", "bottle; flask")
TEXTS = ("red cube", "gripper", "table", "plate", "bowl")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


def save(folder: Path | str, model: hf.PreTrainedModel, processor: Any, gain: float | None = 1.5) -> str:
    """Save a model with its processor.

    Args:
        folder: made if it is missing.
        model: weights and configuration.
        processor: how images (and texts) are prepared.
        gain: of the random matrices. transformers draws them so small that a tiny model's answer is a
            constant. None leaves them.
    """
    torch.manual_seed(1)
    for module in model.modules() if gain is not None else ():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1:
                inputs = 1 if isinstance(module, torch.nn.Embedding) else parameter[0].numel()
                torch.nn.init.normal_(parameter, std=gain / inputs**0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def id2label(names: tuple[str, ...] = LABELS) -> dict[int, str]:
    """Class names as transformers writes them."""
    return dict(enumerate(names))


def swin() -> dict[str, Any]:
    """A Swin backbone of four stages, strides 4 to 32."""
    return {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }


def tiny_mask2former(
    folder: Path | str, size: int = 64, dtype: torch.dtype = torch.float32, **processor
) -> str:
    """Mask2Former with a Swin backbone; images are squeezed to size x size, masks are a quarter of that."""
    torch.manual_seed(0)
    config = hf.Mask2FormerConfig(
        backbone_config=swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=16,
        num_attention_heads=2,
        num_queries=8,
        id2label=id2label(),
    )
    prepare = hf.Mask2FormerImageProcessor(
        size={"height": size, "width": size}, num_labels=len(LABELS), **processor
    )
    return save(folder, hf.Mask2FormerForUniversalSegmentation(config).to(dtype), prepare)


def tiny_maskformer(folder: Path | str) -> str:
    """MaskFormer with a Swin backbone."""
    torch.manual_seed(0)
    decoder = {
        "model_type": "detr",
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "num_queries": 8,
        "use_timm_backbone": False,
        "backbone_config": {"model_type": "resnet", "depths": [1, 1], "hidden_sizes": [8, 8]},
    }
    config = hf.MaskFormerConfig(
        backbone_config=swin(),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        id2label=id2label(),
    )
    prepare = hf.MaskFormerImageProcessor(size={"height": 64, "width": 64})
    return save(folder, hf.MaskFormerForInstanceSegmentation(config), prepare)


def tiny_eomt(folder: Path | str, windows: bool = True, patch_size: int = 4) -> str:
    """EoMT. Masks are four times finer than patches, so that patches of 4 give full resolution.

    Args:
        folder: where to save it.
        windows: cut images into square windows, as its semantic models do; otherwise pad them to a square,
            as its panoptic ones do.
        patch_size: in pixels.
    """
    torch.manual_seed(0)
    config = hf.EomtConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_blocks=1,
        image_size=32,
        patch_size=patch_size,
        num_queries=8,
        num_upscale_blocks=2,
        id2label=id2label(),
    )
    size = {"shortest_edge": 32, "longest_edge": None if windows else 32}
    prepare = hf.EomtImageProcessor(size=size, do_split_image=windows, do_pad=not windows)
    return save(folder, hf.EomtForUniversalSegmentation(config), prepare)


def tiny_segformer(folder: Path | str, size: int = 64) -> str:
    """SegFormer."""
    torch.manual_seed(0)
    config = hf.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        id2label=id2label(),
    )
    prepare = hf.SegformerImageProcessor(size={"height": size, "width": size})
    return save(folder, hf.SegformerForSemanticSegmentation(config), prepare)


def tiny_efficientvit_fpn(
    folder: Path | str, size: tuple[int, int] = (64, 96), dtype: torch.dtype = torch.float32, **config
) -> str:
    """The suite's own segmenter, which is small already."""
    torch.manual_seed(0)
    model = EfficientViTFPNForSemanticSegmentation(EfficientViTFPNConfig(**config))
    prepare = hf.ViTImageProcessor(
        size={"height": size[0], "width": size[1]},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return save(folder, model.to(dtype), prepare, gain=None)


def tiny_tokenizer(folder: Path | str, texts: tuple[str, ...] = TEXTS) -> hf.CLIPTokenizer:
    """A CLIP tokenizer that knows each letter, alone and at the end of a word, and merges nothing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(set("".join(texts)) - {" "})
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: id_ for id_, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return hf.CLIPTokenizer.from_pretrained(folder, model_max_length=24)


def _clip_text(tokenizer: hf.CLIPTokenizer, **sizes) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **sizes,
    }


def tiny_clipseg(folder: Path | str) -> str:
    """CLIPSeg; masks are as large as the 32 x 32 images it gets."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(folder)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = hf.CLIPSegConfig(
        text_config=_clip_text(tokenizer),
        vision_config=vision,
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    images = hf.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=CLIP_MEAN, image_std=(0.27,) * 3
    )
    return save(folder, hf.CLIPSegForImageSegmentation(config), hf.CLIPSegProcessor(images, tokenizer))


def tiny_sam3(folder: Path | str) -> str:
    """SAM 3."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(folder)
    layers = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    backbone = {
        "model_type": "sam3_vit_model",
        **layers,
        "num_hidden_layers": 2,
        "image_size": 56,
        "pretrain_image_size": 28,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    vision = {
        "backbone_config": backbone,
        "fpn_hidden_size": 16,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }
    config = hf.Sam3Config(
        vision_config=vision,
        text_config=_clip_text(tokenizer, projection_dim=16),
        geometry_encoder_config={**layers, "num_layers": 1},
        detr_encoder_config={**layers, "num_layers": 1},
        detr_decoder_config={**layers, "num_layers": 1, "num_queries": 5},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )
    images = hf.Sam3ImageProcessor(size={"height": 56, "width": 56})
    return save(folder, hf.Sam3Model(config), hf.Sam3Processor(images, tokenizer))


def dinov2() -> hf.Dinov2Config:
    """A DINOv2 backbone of four layers, patches of 14 pixels."""
    return hf.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )


def tiny_dinov2(folder: Path | str) -> str:
    """DINOv2; images are 28 x 28."""
    torch.manual_seed(0)
    prepare = hf.BitImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False)
    return save(folder, hf.Dinov2Model(dinov2()), prepare)


def _dpt_processor(**options) -> hf.DPTImageProcessor:
    return hf.DPTImageProcessor(size={"height": 56, "width": 56}, image_mean=(0.485, 0.456, 0.406), **options)


def tiny_depth_anything(
    folder: Path | str, kind: str = "relative", dtype: torch.dtype = torch.float32
) -> str:
    """Depth Anything; it keeps the shape of an image, in multiples of 14 pixels."""
    torch.manual_seed(0)
    config = hf.DepthAnythingConfig(
        backbone_config=dinov2(),
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=20,
    )
    model = hf.DepthAnythingForDepthEstimation(config).to(dtype)
    # Without a bias the last ReLU would answer 0 everywhere for half of all random models.
    torch.nn.init.constant_(model.head.conv3.bias, 1.0)
    return save(folder, model, _dpt_processor(keep_aspect_ratio=True, ensure_multiple_of=14))


def tiny_dpt(folder: Path | str) -> str:
    """DPT."""
    torch.manual_seed(0)
    config = hf.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=56,
        patch_size=14,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        num_labels=len(LABELS),
    )
    model = hf.DPTForDepthEstimation(config)
    torch.nn.init.constant_(model.head.head[4].bias, 1.0)
    return save(folder, model, _dpt_processor())


def tiny_glpn(folder: Path | str) -> str:
    """GLPN, which predicts metres."""
    torch.manual_seed(0)
    config = hf.GLPNConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )
    return save(folder, hf.GLPNForDepthEstimation(config), hf.GLPNImageProcessor())


def tiny_zoedepth(folder: Path | str, heads: int = 1) -> str:
    """ZoeDepth, which predicts metres and gets images with a mirrored border."""
    torch.manual_seed(0)
    backbone = {
        "model_type": "beit",
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 64,
        "patch_size": 16,
        "use_relative_position_bias": True,
        "reshape_hidden_states": False,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    config = hf.ZoeDepthConfig(
        backbone_config=backbone,
        backbone_hidden_size=16,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=32,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1],
        patch_transformer_hidden_size=8,
        patch_transformer_intermediate_size=8,
        patch_transformer_num_attention_heads=2,
        num_patch_transformer_layers=1,
        bin_configurations=[
            {"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": f"head{head}"}
            for head in range(heads)
        ],
    )
    prepare = hf.ZoeDepthImageProcessor(size={"height": 64, "width": 64}, keep_aspect_ratio=False)
    return save(folder, hf.ZoeDepthForDepthEstimation(config), prepare)


def tiny_depth_pro(folder: Path | str) -> str:
    """Depth Pro, whose raw answer is inverse depth up to a factor."""
    torch.manual_seed(0)
    encoder = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    config = hf.DepthProConfig(
        patch_model_config=encoder,
        image_model_config=encoder,
        fov_model_config=encoder,
        patch_size=16,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[8, 8],
        use_fov_model=True,
    )
    prepare = hf.DepthProImageProcessor(size={"height": 32, "width": 32})
    return save(folder, hf.DepthProForDepthEstimation(config), prepare)


def tiny_siglip(folder: Path | str, size: int = 32, seed: int = 0) -> str:
    """SigLIP with both halves and a tokenizer; images are size x size, patches 8 x 8."""
    torch.manual_seed(seed)
    layers = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    tokenizer = _letter_tokenizer()
    config = hf.SiglipConfig(
        vision_config={**layers, "image_size": size, "patch_size": 8},
        text_config={
            **layers,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 24,
            "projection_size": 16,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    return save(folder, hf.SiglipModel(config), tokenizer)


def _letter_tokenizer() -> hf.PreTrainedTokenizerFast:
    """One token for each small letter; capitals are unknown."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {token: id_ for id_, token in enumerate(("<pad>", "<unk>", *"abcdefghijklmnopqrstuvwxyz ."))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")


def tiny_smolvla(vlm: str) -> dict[str, Any]:
    """Fields of a configuration that make SmolVLA, or a policy built on it, tiny.

    Args:
        vlm: folder of `save_small_vlm`.
    """
    return {
        "vlm_model_name": vlm,
        "num_vlm_layers": 2,
        "resize_imgs_with_padding": (64, 64),
        "chunk_size": 6,
        "n_action_steps": 6,
        "num_steps": 3,
        "device": "cpu",
        "push_to_hub": False,
    }


def robot_features(
    size: tuple[int, int] = (48, 64), cameras: tuple[str, ...] = ("top", "wrist")
) -> dict[str, Any]:
    """The features of an arm with six joints and cameras, as fields of a configuration."""
    image = PolicyFeature(FeatureType.VISUAL, (3, *size))
    images = {f"observation.images.{camera}": image for camera in cameras}
    return {
        "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (6,)), **images},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (6,))},
    }


def tiny_act(folder: Path, size: tuple[int, int], cameras: tuple[str, ...], chunk: int) -> PreTrainedConfig:
    """Save LeRobot's ACT with random weights, which commands joints near 0, and return its configuration."""
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    torch.manual_seed(0)
    config = ACTConfig(
        **robot_features(size, cameras),
        pretrained_backbone_weights=None,
        chunk_size=chunk,
        n_action_steps=chunk,
        dim_model=16,
        n_heads=2,
        dim_feedforward=16,
        n_encoder_layers=1,
        use_vae=False,
        device="cpu",
        push_to_hub=False,
    )
    return save_policy(ACTPolicy(config), folder)


def save_policy(policy: Any, folder: Path, statistics: dict[str, Any] | None = None) -> PreTrainedConfig:
    """Save a policy with new pipelines, as LeRobot does.

    Args:
        policy: untrained, say.
        folder: made if it is missing.
        statistics: of a dataset, for the pipelines.

    Returns:
        Its configuration, which knows the folder.
    """
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=statistics):
        pipeline.save_pretrained(folder)
    policy.config.pretrained_path = folder
    return policy.config
