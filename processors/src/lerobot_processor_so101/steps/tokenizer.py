# SPDX-License-Identifier: Apache-2.0
"""The processor step that tokenizes the task sentence, with its tokenizer inside the checkpoint."""

from dataclasses import dataclass
from typing import Any

import torch
from lerobot.processor import ProcessorStepRegistry, TokenizerProcessorStep
from torch import Tensor

_STATE = "tokenizer_json"


@ProcessorStepRegistry.register("so101_tokenizer")
@dataclass
class StoredTokenizerStep(TokenizerProcessorStep):
    """LeRobot's tokenizer step, which loads from a checkpoint without a network.

    The state of the step contains the bytes of the tokenizer's JSON file.

    Attributes:
        pad_token: token that pads shorter sentences; taken from the tokenizer if it is loaded by name.
    """

    pad_token: str = ""

    def __post_init__(self) -> None:
        if self.tokenizer_name is None and self.tokenizer is None:
            return  # a checkpoint is loading: `load_state_dict` follows
        super().__post_init__()
        self.pad_token = self.input_tokenizer.pad_token

    def state_dict(self) -> dict[str, Tensor]:
        text = self.input_tokenizer.backend_tokenizer.to_str()
        return {_STATE: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        text = state[_STATE].cpu().numpy().tobytes().decode()
        self.input_tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(text), pad_token=self.pad_token
        )

    def get_config(self) -> dict[str, Any]:
        """Return LeRobot's configuration without the tokenizer's name, which would need a network."""
        config = {**super().get_config(), "pad_token": self.pad_token}
        config.pop("tokenizer_name", None)
        return config
