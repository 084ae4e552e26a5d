# SPDX-License-Identifier: Apache-2.0
"""The step that makes tokens of the task sentence, with its tokenizer inside the checkpoint."""

from dataclasses import dataclass
from typing import Any

import torch
from lerobot.processor import ProcessorStepRegistry, TokenizerProcessorStep
from torch import Tensor

_STATE = "tokenizer_json"


@ProcessorStepRegistry.register("so101_tokenizer")
@dataclass
class StoredTokenizerStep(TokenizerProcessorStep):
    """LeRobot's tokenizer step that needs no network when a checkpoint is loaded.

    The tokenizer travels as the bytes of its JSON file, in the safetensors file of the step's state.

    Attributes:
        pad_token: what shorter sentences are filled up with; taken from the tokenizer when it is loaded by name.
    """

    pad_token: str = ""

    def __post_init__(self) -> None:
        if self.tokenizer_name is None and self.tokenizer is None:
            return  # from a checkpoint: `load_state_dict` brings it
        super().__post_init__()
        self.pad_token = self.input_tokenizer.pad_token

    def state_dict(self) -> dict[str, Tensor]:
        """The tokenizer's JSON as bytes."""
        text = self.input_tokenizer.backend_tokenizer.to_str()
        return {_STATE: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Rebuild the tokenizer."""
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        text = state[_STATE].cpu().numpy().tobytes().decode()
        self.input_tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(text), pad_token=self.pad_token
        )

    def get_config(self) -> dict[str, Any]:
        """As LeRobot's, without the name that would have to be looked up."""
        config = {**super().get_config(), "pad_token": self.pad_token}
        config.pop("tokenizer_name", None)
        return config
