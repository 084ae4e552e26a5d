# SPDX-License-Identifier: Apache-2.0
"""The common part of segmenters and depth models: loading, preprocessing, batching, identity."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, BatchFeature, PretrainedConfig, PreTrainedModel

from ..perception.identity import ModelIdentity, weights_hash
from . import efficientvit_fpn  # noqa: F401  registers the suite's own model with the Auto classes

type Region = tuple[float, float, float, float]  # top, left, height, width, each a fraction of the image
FULL_IMAGE: Region = (0.0, 0.0, 1.0, 1.0)

PACKAGED = ("workbench", "sorting")  # segmenters in this package: any one cube; cubes and bowls by colour


class PerceptionModel(nn.Module):
    """A frozen transformers model for images in [0, 1].

    It resizes and normalises images with the image processor that was saved beside the model. Weights are
    float32; a GPU computes in bfloat16 where autocast considers that safe. Outputs are float32.

    Attributes:
        name: Hub id or folder, for messages and the identity.
        disabled: options of the image processor that are disabled, to keep outputs aligned with the image.
    """

    disabled: tuple[str, ...] = ("do_center_crop", "do_pad")

    def __init__(self, name: str, model: PreTrainedModel, processor: Any) -> None:
        super().__init__()
        self.name = name
        self.processor = processor
        self.weights = weights_hash(model)
        # Convolutions are fastest with channels last, on CPUs as on GPUs.
        self.model = model.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; none for a depth model."""
        return ()

    @property
    def identity(self) -> ModelIdentity:
        """Identity of this model for checkpoints and datasets."""
        size = dict(getattr(self.processor, "size", None) or {})
        sides = ("height", "width") if "height" in size else ("shortest_edge",)
        input_size = tuple(size[side] for side in sides if side in size)
        return ModelIdentity(self.name, self.weights, self.class_names, input_size)

    def train(self, mode: bool = True) -> "PerceptionModel":
        """Stay in evaluation mode: the model is frozen."""
        return super().train(False)

    def prepare(self, images: Tensor) -> BatchFeature:
        """Resize and normalise images (B, 3, H, W) for the model, and move the model to their device.

        Raises:
            ValueError: as `check_images`.
        """
        check_images(images)
        if self.model.device != images.device:
            self.model.to(images.device)
        disabled = {option: False for option in self.disabled if hasattr(self.processor, option)}
        # Grouping images of one size copies them, which doubles the time on a CPU.
        inputs = self.processor(
            images=list(images),
            do_rescale=False,
            return_tensors="pt",
            disable_grouping=images.device.type == "cpu",
            **disabled,
        )
        return inputs.to(images.device)

    def image_region(self, inputs: BatchFeature, size: torch.Size) -> Region:
        """Return the part of the images of `prepare` that is not padding; their `size` was (H, W)."""
        if "pixel_mask" not in inputs:
            return FULL_IMAGE
        mask = inputs["pixel_mask"][0]
        return 0.0, 0.0, float(mask.any(1).float().mean()), float(mask.any(0).float().mean())


def check_images(images: Tensor) -> None:
    """Refuse images that a perception model would process without an error but wrongly.

    Raises:
        ValueError: if they are not (B, 3, H, W) floating point in [0, 1], or contain NaN.
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


def run_batched[Output](
    run: Callable[[BatchFeature], Output],
    split: Callable[[Output, int, int], Output],
    inputs: Sequence[BatchFeature],
) -> list[Output]:
    """Return a model's output for each prepared batch, with one call for those of the same size.

    `split` returns the rows from start to end of an output.
    """
    outputs: dict[int, Output] = {}
    by_size: dict[Any, list[int]] = {}
    for index, batch in enumerate(inputs):
        by_size.setdefault(batch["pixel_values"].shape[1:], []).append(index)
    for members in by_size.values():
        pixels = torch.cat([inputs[index]["pixel_values"] for index in members])
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
            output = run(BatchFeature({"pixel_values": pixels}))
        end = 0
        for index in members:
            start, end = end, end + len(inputs[index]["pixel_values"])
            outputs[index] = split(output, start, end)
    return [outputs[index] for index in range(len(inputs))]


def crop_interpolated(maps: Tensor, region: Region) -> Tensor:
    """Crop maps (B, C, H, W) to a region whose borders may lie between pixels.

    Returns:
        (B, C, h, w) of the same resolution, interpolated linearly; `maps` itself for the full image.
    """
    if region == FULL_IMAGE:
        return maps
    top, left, height, width = region
    size = max(1, round(maps.shape[-2] * height)), max(1, round(maps.shape[-1] * width))
    to_source = maps.new_tensor([[width, 0, 2 * left + width - 1], [0, height, 2 * top + height - 1]])
    theta = to_source.expand(len(maps), -1, -1)
    grid = F.affine_grid(theta, [*maps.shape[:2], *size], align_corners=False)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def local_folder(name: str) -> str:
    """Return a folder's path without "~", and a Hub id as it is.

    Raises:
        ValueError: if the name is neither a folder nor of the form owner/name.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name.startswith((".", "/", "~")):
        raise ValueError(f"perception model {name!r}: there is no such folder.")
    if "/" not in name:  # a typo: do not ask the network
        near = difflib.get_close_matches(name, (*PACKAGED, "observation", "segmenter"), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"perception model {name!r}: expected {', '.join(PACKAGED)}, a folder, or owner/name on the "
            f"Hub.{hint}"
        )
    return name


def load_config(name: str) -> PretrainedConfig:
    """Load a model's configuration from a folder or the Hub.

    Raises:
        ValueError: if there is none.
    """
    try:
        return AutoConfig.from_pretrained(local_folder(name))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"perception model {name!r}: found neither a folder with a config.json nor a model on the Hub or "
            f"in its cache. {str(error).splitlines()[0]}"
        ) from error


def load_pretrained(
    name: str, model_class: Any, processor_class: Any = AutoImageProcessor
) -> tuple[PreTrainedModel, Any]:
    """Load a model, in the dtype of its weights, and its processor from a folder or the Hub.

    Raises:
        ValueError: if there are no weights, or those of another kind of model (transformers would initialise
            the missing ones randomly).
    """
    folder = local_folder(name)
    try:
        model, found = model_class.from_pretrained(
            folder, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
        )
    except OSError as error:
        raise ValueError(f"perception model {name!r}: {str(error).splitlines()[0]}") from error
    missing = found["missing_keys"] & {key for key, _ in model.named_parameters()}
    wrong = sorted(missing | {key for key, *_ in found["mismatched_keys"]})
    if wrong:
        raise ValueError(
            f"perception model {name!r}: its weights lack {len(wrong)} parameters of {type(model).__name__}, "
            f"such as {wrong[0]!r}, or have them in another size. It was made for another task; use one of "
            "this task."
        )
    return model, processor_class.from_pretrained(folder)
