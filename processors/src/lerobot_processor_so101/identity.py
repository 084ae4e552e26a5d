# SPDX-License-Identifier: Apache-2.0
"""Who made a mask or a disparity: the identity of a perception model, which travels in checkpoints and datasets."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ModelIdentity:
    """What must be equal for two perception models to be interchangeable.

    Attributes:
        name: Hub id or folder the weights came from. Only for people: a copy elsewhere is the same model.
        weights: SHA-256 of all parameters and buffers as they were loaded.
        class_names: the segmenter's classes; empty for a depth model.
        input_size: (height, width) that pictures are resized to; one number where that is their shorter side; empty
            where it depends on the picture.
    """

    name: str
    weights: str
    class_names: tuple[str, ...] = ()
    input_size: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelIdentity":
        """From JSON types.

        Raises:
            ValueError: an entry is missing or unknown.
        """
        entries: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        try:
            return cls(**entries)
        except TypeError as error:
            raise ValueError(f"identity of a perception model: found {sorted(values)}; {error}") from error

    def check(self, found: "ModelIdentity", where: str) -> None:
        """Refuse another model than this one.

        Args:
            found: identity of the model at hand.
            where: what asks for this one, for the message.

        Raises:
            ValueError: they differ; the message names the first difference.
        """
        for key in ("class_names", "weights", "input_size"):
            expected, actual = getattr(self, key), getattr(found, key)
            if expected != actual:
                raise ValueError(
                    f"{where} expects the perception model {self.name!r} with {key} = {_short(expected, actual)}, "
                    f"found {found.name!r} with {key} = {_short(actual, expected)}. Use the same model, or make the "
                    "masks and train again with the new one."
                )


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of a model's state, independent of the device and of the file it came from."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _short(value: Any, other: Any) -> str:
    """A value for a message; of a long list, where it begins to differ from the other."""
    if isinstance(value, str):
        return f"{value[:12]}..."
    first = next(
        (i for i, pair in enumerate(zip(value, other, strict=False)) if pair[0] != pair[1]), len(other)
    )
    if len(value) <= 8:
        return str(list(value))
    return f"{len(value)} entries, from {first} on {list(value[first : first + 3])}"
