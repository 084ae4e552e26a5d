# SPDX-License-Identifier: Apache-2.0
"""Resize class ids and measured maps, pixel for pixel as OpenCV does, and crop them.

Images are (..., H, W) and sizes (h, w). A result has the dtype of the image, and is the image itself if that
has the size already.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resize_ids(ids: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize class ids of any dtype by nearest neighbour, with the same pixels as OpenCV's INTER_NEAREST."""
    height, width = ids.shape[-2:]
    if (height, width) == tuple(size):
        return ids
    rows = torch.from_numpy(_nearest(height, size[0])).to(ids.device)
    columns = torch.from_numpy(_nearest(width, size[1])).to(ids.device)
    return ids.index_select(-2, rows).index_select(-1, columns)


def resize_area(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink a floating-point map by averaging the area under each new pixel, as OpenCV's INTER_AREA.

    Enlarging repeats pixels, unlike OpenCV's.
    """
    height, width = values.shape[-2:]
    if (height, width) == tuple(size):
        return values
    if height % size[0] == 0 and width % size[1] == 0:
        frames = values.reshape(-1, 1, height, width)
        pooled = F.avg_pool2d(frames, (height // size[0], width // size[1]))
        return pooled.reshape(*values.shape[:-2], *size)
    rows = torch.from_numpy(_coverage(height, size[0])).to(values)  # (h, H)
    columns = torch.from_numpy(_coverage(width, size[1])).to(values)  # (w, W)
    return rows @ (values @ columns.mT)


def resize_linear(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize floating-point maps by bilinear interpolation, as OpenCV's INTER_LINEAR.

    Shrinking by more than 2 skips pixels; `resize_area` does not.
    """
    if values.shape[-2:] == tuple(size):
        return values
    frames = values.reshape(-1, 1, *values.shape[-2:])
    resized = F.interpolate(frames, size=tuple(size), mode="bilinear", align_corners=False)
    return resized.reshape(*values.shape[:-2], *size)


def crop_region(frames: Tensor, region: Sequence[float] | None) -> Tensor:
    """Crop images to a region: top, left, height and width as fractions of the image; None for all of it.

    Fractions select the same part of a depth model's coarser grid. Borders are rounded to pixels. The central
    square of 480 x 640 is (0, 0.125, 1, 0.75).

    Raises:
        ValueError: if the region is empty or not inside the image.
    """
    if region is None:
        return frames
    sides = zip(region[:2], region[2:], strict=False)
    if len(region) != 4 or not all(start >= 0 and n > 0 and start + n <= 1 + 1e-6 for start, n in sides):
        raise ValueError(
            f"crop or region: found {list(region)}, expected [top, left, height, width] as fractions of the "
            "image, inside 0..1."
        )
    height, width = frames.shape[-2:]
    top, bottom = round(region[0] * height), round((region[0] + region[2]) * height)
    left, right = round(region[1] * width), round((region[1] + region[3]) * width)
    return frames[..., top : max(bottom, top + 1), left : max(right, left + 1)]


# The tables are NumPy arrays: a tensor cached under `inference_mode` could not be used in training.


@lru_cache
def _nearest(source: int, target: int) -> np.ndarray:
    """Return the index of the source pixel that each target pixel copies, (target,)."""
    # OpenCV inverts the ratio twice; source / target may round to another pixel.
    step = 1.0 / (target / source)
    return np.minimum(np.floor(np.arange(target) * step).astype(np.int64), source - 1)


@lru_cache
def _coverage(source: int, target: int) -> np.ndarray:
    """Return the share of each source pixel in each target pixel, (target, source), rows summing to 1."""
    step = source / target
    start = np.arange(target)[:, None] * step
    pixel = np.arange(source)[None]
    overlap = np.minimum(pixel + 1, start + step) - np.maximum(pixel, start)
    return np.maximum(overlap, 0.0) / step
