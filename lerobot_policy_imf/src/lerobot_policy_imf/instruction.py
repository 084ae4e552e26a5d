# SPDX-License-Identifier: Apache-2.0
"""The task sentence, read by the text half of the model whose other half sees."""

from pathlib import Path
from typing import Any

import torch
from lerobot.utils.constants import OBS_LANGUAGE_TOKENS
from torch import Tensor

from lerobot_processor_so101 import StoredTokenizerStep

from .vision import FrozenModel, load, text_config

TEXT_FOLDER = "text"
TOKENS = OBS_LANGUAGE_TOKENS


class TextEncoder(FrozenModel):
    """A SigLIP text tower. It is frozen, so that each sentence is read once.

    Args:
        tower: `SiglipTextModel`.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__(tower)
        self.output_dim = tower.config.projection_size
        self._read: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def make(cls, name: str, checkpoint: Path | None) -> "TextEncoder":
        """Load it, or build it for the weights of a checkpoint; see `VisionEncoder.make`."""
        from transformers import SiglipTextModel

        config = text_config(name if checkpoint is None else str(checkpoint / TEXT_FOLDER))
        return cls(SiglipTextModel(config) if checkpoint else load(SiglipTextModel, name, config))

    def save_config(self, folder: Path) -> None:
        """Save what `make` needs beside the weights."""
        self.model.config.save_pretrained(folder / TEXT_FOLDER)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens of sentences to (B, output_dim) float32."""
        rows = [tuple(row) for row in tokens.tolist()]
        for row in set(rows) - set(self._read):
            ids = torch.tensor([row], device=tokens.device)
            self._read[row] = self.model(input_ids=ids).pooler_output[0].float()
        return torch.stack([self._read[row].to(tokens.device) for row in rows])

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._read.clear()
        super()._load_from_state_dict(*args, **kwargs)


def tokenizer_step(name: str) -> StoredTokenizerStep:
    """What makes tokens of the task as the model learned them: in lower case, filled up to its length.

    Args:
        name: folder or Hub id of a SigLIP model with its tokenizer.

    Raises:
        ValueError: there is no tokenizer.
    """
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    length = text_config(name).max_position_embeddings
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:  # the last: that of the first SigLIP
        raise ValueError(
            f"instruction: found no tokenizer under {name!r} that works, expected one of SigLIP2 beside the model. ({error})"
        ) from error
    backend = tokenizer.backend_tokenizer
    kept = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *kept])
    return StoredTokenizerStep(
        tokenizer=tokenizer, max_length=length, padding="max_length", padding_side="right"
    )
