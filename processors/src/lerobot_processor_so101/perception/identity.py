# SPDX-License-Identifier: Apache-2.0
"""The identity of a perception model, which checkpoints and datasets contain."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ModelIdentity:
    """Properties that two interchangeable perception models share.

    Attributes:
        name: Hub id or folder of the weights. Only for messages: a copy elsewhere is the same model.
        weights: SHA-256 of all parameters and buffers as they were loaded.
        class_names: the segmenter's classes; empty for a depth model.
        input_size: (height, width) that images are resized to; one number if that is their shorter side;
            empty if it depends on the image.
    """

    name: str
    weights: str
    class_names: tuple[str, ...] = ()
    input_size: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the identity as JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelIdentity":
        """Create an identity from JSON types.

        Raises:
            ValueError: if an entry is missing or unknown.
        """
        entries: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**entries)
        except TypeError as error:
            raise ValueError(f"identity of a perception model: found {sorted(values)}; {error}") from error

    def check(self, found: "ModelIdentity", where: str) -> None:
        """Refuse a model with another identity.

        Raises:
            ValueError: if they differ; the message names the first difference, and the checkpoint or dataset
                that expects this model (`where`).
        """
        for key in ("class_names", "weights", "input_size"):
            expected, actual = getattr(self, key), getattr(found, key)
            if expected != actual:
                raise ValueError(
                    f"{where} expects the perception model {self.name!r} with {key} = "
                    f"{_short(expected, actual)}, found {found.name!r} with {key} = "
                    f"{_short(actual, expected)}. Use the same model, or compute the masks and train again "
                    "with the new one."
                )


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of a model's state, independent of its device and file."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _short(value: Any, other: Any) -> str:
    """Format a value for a message; of a long list, the part from the first difference to the other."""
    if isinstance(value, str):
        return f"{value[:12]}..."
    if len(value) <= 8:
        return str(list(value))
    pairs = enumerate(zip(value, other, strict=False))
    first = next((i for i, (mine, others) in pairs if mine != others), len(other))
    return f"{len(value)} entries, from {first} on {list(value[first : first + 3])}"
