# SPDX-License-Identifier: Apache-2.0
"""What segmenters and depth models from transformers have in common: loading, resizing, batching, identity."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, BatchFeature, PretrainedConfig, PreTrainedModel

from . import efficientvit_fpn  # noqa: F401  makes the suite's own model known to the Auto classes
from .identity import ModelIdentity, weights_hash


class PerceptionModel(nn.Module):
    """A frozen transformers model that looks at pictures in [0, 1].

    It resizes and normalises with the image processor that was saved beside the model, works in bfloat16 on a GPU,
    and answers in float32.

    Args:
        name: Hub id or folder, for messages and the identity.
        model: the model.
        processor: its image processor.
    """

    def __init__(self, name: str, model: PreTrainedModel, processor: Any) -> None:
        super().__init__()
        self.name = name
        self.processor = processor
        self.weights = weights_hash(model)
        self.model = model.float().eval().requires_grad_(False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; none for a depth model."""
        return ()

    @property
    def identity(self) -> ModelIdentity:
        """What a checkpoint or dataset remembers of this model."""
        size = getattr(self.processor, "size", None) or {}
        input_size = (size["height"], size["width"]) if "height" in size else ()
        return ModelIdentity(self.name, self.weights, self.class_names, input_size)

    def train(self, mode: bool = True) -> "PerceptionModel":
        """Stay in evaluation mode: the model is frozen."""
        return super().train(False)

    def to_device_of(self, images: Tensor) -> None:
        """Follow the pictures: the model moves to their device, in bfloat16 where that is a GPU."""
        dtype = torch.bfloat16 if images.device.type == "cuda" else torch.float32
        parameter = next(self.model.parameters())
        if parameter.device != images.device or parameter.dtype != dtype:
            self.model.to(images.device, dtype)

    def prepare(self, images: Tensor) -> BatchFeature:
        """Resize and normalise as the model wants it.

        Args:
            images: (B, 3, H, W) in [0, 1].
        """
        inputs = self.processor(images=list(images), do_rescale=False, return_tensors="pt")
        dtype = next(self.model.parameters()).dtype
        return inputs.to(images.device, dtype)


def check_images(images: Tensor) -> None:
    """Refuse what a perception model would silently misread.

    Args:
        images: pictures, expected (B, 3, H, W) floating point in [0, 1].

    Raises:
        ValueError: another shape, another dtype, NaN or another range.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images: found shape {tuple(images.shape)}, expected (B, 3, H, W).")
    if not images.is_floating_point():
        raise ValueError(f"images: found {images.dtype}, expected floats in [0, 1]; divide uint8 by 255.")
    if not images.numel():
        raise ValueError(f"images: found none, shape {tuple(images.shape)}.")
    low, high = (bound.item() for bound in images.aminmax())  # NaN anywhere gives NaN for both
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"images: found values from {low:g} to {high:g}, expected [0, 1] without NaN.")


def in_batches[Answer](
    run: Callable[[BatchFeature], Answer],
    split: Callable[[Answer, int, int], Answer],
    inputs: Sequence[BatchFeature],
) -> list[Answer]:
    """Run several prepared batches as one, where their sizes allow.

    Args:
        run: the model.
        split: the rows from start to end of an answer.
        inputs: one prepared batch per camera.

    Returns:
        One answer per batch.
    """
    answers: dict[int, Answer] = {}
    by_size: dict[Any, list[int]] = {}
    for index, batch in enumerate(inputs):
        by_size.setdefault(batch["pixel_values"].shape[1:], []).append(index)
    for members in by_size.values():
        together = BatchFeature(
            {"pixel_values": torch.cat([inputs[index]["pixel_values"] for index in members])}
        )
        answer, start = run(together), 0
        for index in members:
            end = start + len(inputs[index]["pixel_values"])
            answers[index] = split(answer, start, end)
            start = end
    return [answers[index] for index in range(len(inputs))]


def load_config(name: str) -> PretrainedConfig:
    """Read a model's configuration from a folder or the Hub.

    Raises:
        ValueError: there is none, with what was looked for.
    """
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ValueError(f"perception model {name!r}: there is no such folder.")
    try:
        return AutoConfig.from_pretrained(
            str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"perception model {name!r}: found neither a folder with a config.json nor a model on the Hub or in "
            f"its cache. {str(error).splitlines()[0]}"
        ) from error


def load_processor(name: str) -> Any:
    """Read the image processor that was saved beside a model."""
    return AutoImageProcessor.from_pretrained(name)
