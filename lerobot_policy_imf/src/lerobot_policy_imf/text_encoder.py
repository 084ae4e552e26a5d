# SPDX-License-Identifier: Apache-2.0
"""The frozen text encoder of the task sentence: the text tower of the SigLIP model of the views."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lerobot_processor_so101 import StoredTokenizerStep

from .vision import FrozenTower, tower_config


class TextEncoder(FrozenTower):
    """A SigLIP text tower. It is frozen, so each sentence is encoded once and then cached."""

    def __init__(self, name: str, checkpoint: Path | None = None) -> None:
        super().__init__("text", name, checkpoint)
        self.output_dim = self.model.config.projection_size
        self._cache: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Encode sentences, (B, L) tokens -> (B, output_dim) float32."""
        sentences = [tuple(row) for row in tokens.tolist()]
        for sentence in set(sentences) - set(self._cache):
            ids = torch.tensor([sentence], device=tokens.device)
            self._cache[sentence] = self.model(input_ids=ids).pooler_output[0].float()
        return torch.stack([self._cache[sentence].to(tokens.device) for sentence in sentences])

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cache.clear()
        super()._load_from_state_dict(*args, **kwargs)


def tokenizer_step(name: str) -> StoredTokenizerStep:
    """Make the step that tokenises the task as in the model's training: lower case, padded to full length.

    Args:
        name: folder or Hub id of a SigLIP model with its tokenizer.

    Raises:
        ValueError: if there is no tokenizer.
    """
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    length = tower_config(name, "text").max_position_embeddings
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:  # ImportError: the first SigLIP needs sentencepiece
        raise ValueError(
            f"instruction: found no working tokenizer under {name!r}, expected one of SigLIP2 beside the "
            f"model. ({error})"
        ) from error
    backend = tokenizer.backend_tokenizer
    existing = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *existing])
    return StoredTokenizerStep(
        tokenizer=tokenizer, max_length=length, padding="max_length", padding_side="right"
    )
