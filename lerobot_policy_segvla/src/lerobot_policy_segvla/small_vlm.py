# SPDX-License-Identifier: Apache-2.0
"""Write the configuration and the tokenizer of a SmolVLM of any size, without a download.

SmolVLA reads both from a folder (`--policy.vlm_model_name=FOLDER`) and draws random weights. This serves
tests, speed measurements at the published size, and studies on a CPU, where a pretrained model would be too
large. A policy for a real arm starts from a pretrained checkpoint instead.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

SPECIAL = {
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
}
HEAD_DIM = 16


def save_small_vlm(
    folder: Path | str,
    sentences: Iterable[str],
    image_size: int = 64,
    patch_size: int = 8,
    width: int = 64,
    layers: int = 4,
    vision_width: int = 48,
    vision_layers: int = 2,
) -> str:
    """Save a small SmolVLM, and return its folder.

    Args:
        folder: created if it is missing.
        sentences: text that the tokenizer is trained on.
        image_size: side of an image in pixels.
        patch_size: side of a patch in pixels; sixteen patches make one token.
        width, layers: of the language model; the width is a multiple of 32.
        vision_width, vision_layers: of the vision tower; the width is a multiple of 16.
    """
    vision = _sizes(vision_width, 2 * vision_width, vision_layers, vision_width // HEAD_DIM)
    text = _sizes(width, 2 * width, layers, width // HEAD_DIM)
    text |= {"num_key_value_heads": width // (2 * HEAD_DIM), "head_dim": HEAD_DIM}
    return _save(folder, sentences, {**vision, "image_size": image_size, "patch_size": patch_size}, text)


def save_published_vlm(folder: Path | str, sentences: Iterable[str]) -> str:
    """Save the configuration of SmolVLM2-500M-Video-Instruct, with a small tokenizer; return its folder."""
    vision = {**_sizes(768, 3072, layers=12, heads=12), "image_size": 512, "patch_size": 16}
    text = _sizes(960, 2560, layers=32, heads=15)
    text |= {"num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280}
    return _save(folder, sentences, vision, text)


def _sizes(width: int, hidden: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _save(folder: Path | str, sentences: Iterable[str], vision: dict[str, Any], text: dict[str, Any]) -> str:
    import transformers

    hf: Any = transformers  # mypy misreads the signatures of its configurations
    tokenizer, size = _train_tokenizer(sentences), {"longest_edge": vision["image_size"]}
    images = hf.SmolVLMImageProcessor(size=size, do_image_splitting=False)
    processor = hf.SmolVLMProcessor(images, tokenizer, hf.SmolVLMVideoProcessor(size=size))
    config = hf.SmolVLMConfig(
        vision_config=vision,
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **text},
        scale_factor=4,
        image_token_id=tokenizer.convert_tokens_to_ids(SPECIAL["image_token"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def _train_tokenizer(sentences: Iterable[str]) -> Any:
    """Train a byte-level BPE with SmolVLM's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=SPECIAL,
    )
