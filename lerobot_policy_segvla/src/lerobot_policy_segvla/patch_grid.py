# SPDX-License-Identifier: Apache-2.0
"""Resample maps of a camera image to the patches of SmolVLA's letterboxed input.

LeRobot resizes the image to fit a box, keeps its aspect ratio, and pads on the left and at the top. Both
functions weight by area: a patch that lies half in the padding contains half of a map.
"""

import torch
from torch import Tensor


def letterbox_size(image_size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Return (h, w) of an image (H, W) inside a box (H, W), rounded as in LeRobot's `resize_with_pad`."""
    ratio = max(image_size[1] / box[1], image_size[0] / box[0])
    return int(image_size[0] / ratio), int(image_size[1] / ratio)


def pool_to_patches(
    maps: Tensor, image_size: tuple[int, int], box: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """Average maps over the patches of the letterboxed image, with zeros in the padding.

    Interpolation would skip pixels where a map is finer than the patches; a small object could vanish.

    Args:
        maps: (B, S, h, w) float32, covering the camera image at any resolution.
        image_size: (H, W) of the camera image.
        box: (H, W) that it is fitted into.
        grid: (gh, gw) patches of the box.

    Returns:
        (B, S, gh * gw).
    """
    weights = []  # per axis, (patches, cells): the share of each patch that a cell of the map covers
    for axis, inside in enumerate(letterbox_size(image_size, box)):
        cells = maps.shape[axis - 2]
        borders = box[axis] - inside + torch.arange(cells + 1, device=maps.device) * (inside / cells)
        weights.append(_overlap(borders.unfold(0, 2, 1), box[axis], grid[axis]).mT)
    rows, columns = weights
    # (gh, h) @ (B, S, h, w) @ (w, gw) -> (B, S, gh, gw) -> (B, S, N)
    return (rows @ maps @ columns.mT).flatten(2)


def region_patches(
    regions: Tensor, image_size: tuple[int, int], box: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """Return the share of each patch that lies in each region of the image, (R, gh * gw) in [0, 1].

    Args:
        regions: (R, 4) float32: x0, x1, y0, y1, fractions of the camera image.
        image_size, box, grid: as in `pool_to_patches`.
    """
    height, width = letterbox_size(image_size, box)
    rows = _overlap(regions[:, 2:] * height + box[0] - height, box[0], grid[0])  # (R, gh)
    columns = _overlap(regions[:, :2] * width + box[1] - width, box[1], grid[1])  # (R, gw)
    return (rows[:, :, None] * columns[:, None, :]).flatten(1)


def _overlap(intervals: Tensor, side: int, patches: int) -> Tensor:
    """Return the share of each patch in each interval: (K, 2) in pixels of the box -> (K, patches)."""
    start, end = intervals[:, :1], intervals[:, 1:]
    edges = torch.arange(patches + 1, device=intervals.device) * (side / patches)
    covered = torch.minimum(end, edges[1:]) - torch.maximum(start, edges[:-1])
    return covered.clamp(min=0) / (side / patches)
