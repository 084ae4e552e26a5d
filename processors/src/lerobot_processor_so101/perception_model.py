# SPDX-License-Identifier: Apache-2.0
"""What segmenters and depth models from transformers have in common: loading, resizing, batching, identity."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, BatchFeature, PretrainedConfig, PreTrainedModel

from . import efficientvit_fpn  # noqa: F401  makes the suite's own model known to the Auto classes
from .identity import ModelIdentity, weights_hash

type Region = tuple[float, float, float, float]  # top, left, height, width, each a fraction of the picture
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)


class PerceptionModel(nn.Module):
    """A frozen transformers model that looks at pictures in [0, 1].

    It resizes and normalises with the image processor that was saved beside the model. Weights are float32; a GPU
    computes in bfloat16 where autocast finds that safe. Answers are float32 and lie on the whole picture.

    Args:
        name: Hub id or folder, for messages and the identity.
        model: the model.
        processor: its image processor.

    Attributes:
        switched_off: what the image processor must not do, because scores would then not lie on the picture.
    """

    switched_off: tuple[str, ...] = ("do_center_crop", "do_pad")

    def __init__(self, name: str, model: PreTrainedModel, processor: Any) -> None:
        super().__init__()
        self.name = name
        self.processor = processor
        self.weights = weights_hash(model)
        # Channels last is how convolutions are fastest, on CPUs as on GPUs.
        self.model = model.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)
        keep_freed_memory()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; none for a depth model."""
        return ()

    @property
    def identity(self) -> ModelIdentity:
        """What a checkpoint or dataset remembers of this model."""
        size = dict(getattr(self.processor, "size", None) or {})
        if "height" in size:
            input_size: tuple[int, ...] = (size["height"], size["width"])
        else:
            input_size = (size["shortest_edge"],) if "shortest_edge" in size else ()
        return ModelIdentity(self.name, self.weights, self.class_names, input_size)

    def train(self, mode: bool = True) -> "PerceptionModel":
        """Stay in evaluation mode: the model is frozen."""
        return super().train(False)

    def prepare(self, images: Tensor) -> BatchFeature:
        """Resize and normalise as the model wants it, and move the model to the pictures' device.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: pictures of another shape, dtype or range, or with NaN.
        """
        check_images(images)
        if self.model.device != images.device:
            self.model.to(images.device)
        off = {option: False for option in self.switched_off if hasattr(self.processor, option)}
        inputs = self.processor(
            images=list(images),
            do_rescale=False,
            return_tensors="pt",
            disable_grouping=images.device.type
            == "cpu",  # grouping equal pictures copies them: twice the time
            **off,
        )
        return inputs.to(images.device)

    def picture_region(self, inputs: BatchFeature, size: tuple[int, int]) -> Region:
        """Which part of the prepared pictures shows the pictures; the rest is padding.

        Args:
            inputs: from `prepare`.
            size: (H, W) of the pictures.
        """
        if "pixel_mask" not in inputs:
            return WHOLE
        mask = inputs["pixel_mask"][0]
        return 0.0, 0.0, float(mask.any(1).float().mean()), float(mask.any(0).float().mean())


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks for the next call.

    It gives them back to the system, which clears them page by page when they are needed again: for a small network
    on 640x480 pictures that takes as long as the network. Having seen a block of almost 32 MB freed, the most it
    adapts to, it keeps twice as much. Other C libraries do not notice.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


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
        pixels = torch.cat([inputs[index]["pixel_values"] for index in members])
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
            answer = run(BatchFeature({"pixel_values": pixels}))
        start = 0
        for index in members:
            end = start + len(inputs[index]["pixel_values"])
            answers[index] = split(answer, start, end)
            start = end
    return [answers[index] for index in range(len(inputs))]


def cut_region(maps: Tensor, region: Region) -> Tensor:
    """Cut out a part of maps whose borders need not fall between pixels.

    Args:
        maps: (B, C, H, W) floating point.
        region: the part.

    Returns:
        (B, C, h, w) of the same resolution, interpolated linearly; `maps` itself for the whole.
    """
    if region == WHOLE:
        return maps
    top, left, height, width = region
    size = max(1, round(maps.shape[-2] * height)), max(1, round(maps.shape[-1] * width))
    to_source = maps.new_tensor([[width, 0, 2 * left + width - 1], [0, height, 2 * top + height - 1]])
    grid = F.affine_grid(
        to_source.expand(len(maps), -1, -1), [len(maps), maps.shape[1], *size], align_corners=False
    )
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def local_folder(name: str) -> str:
    """A folder's path without "~"; a Hub id as it is.

    Raises:
        ValueError: a path that is no folder.
    """
    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError(f"perception model {name!r}: there is no such folder.")
    return str(folder) if folder.is_dir() else name


def load_config(name: str) -> PretrainedConfig:
    """Read a model's configuration from a folder or the Hub.

    Raises:
        ValueError: there is none, with what was looked for.
    """
    try:
        return AutoConfig.from_pretrained(local_folder(name))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"perception model {name!r}: found neither a folder with a config.json nor a model on the Hub or in "
            f"its cache. {str(error).splitlines()[0]}"
        ) from error


def load_model(name: str, auto_class: Any) -> PreTrainedModel:
    """Read a model's weights from a folder or the Hub, in the dtype they were saved in.

    Raises:
        ValueError: there are none, or weights of another kind of model (which transformers would fill up with
            random numbers).
    """
    try:
        model, found = auto_class.from_pretrained(
            local_folder(name), dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
        )
    except OSError as error:
        raise ValueError(f"perception model {name!r}: {str(error).splitlines()[0]}") from error
    absent = found["missing_keys"] & {key for key, _ in model.named_parameters()}
    wrong = sorted(absent | {key for key, *_ in found["mismatched_keys"]})
    if wrong:
        raise ValueError(
            f"perception model {name!r}: its weights lack {len(wrong)} parameters of {type(model).__name__}, such as "
            f"{wrong[0]!r}, or have them in another size. It was made for another task; take a model of this one."
        )
    return model


def load_processor(name: str) -> Any:
    """Read the image processor that was saved beside a model."""
    return AutoImageProcessor.from_pretrained(local_folder(name))
