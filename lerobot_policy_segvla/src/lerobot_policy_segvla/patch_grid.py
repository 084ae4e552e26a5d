# SPDX-License-Identifier: Apache-2.0
"""From maps on a camera's picture to the patches of the letterboxed picture that SmolVLA's vision tower sees.

LeRobot fits the picture into a square, keeps its shape, and pads left and top. A patch that is all padding shows
nothing of a map, one at the edge shows part of it.
"""

import torch
from torch import Tensor


def letterbox_sides(picture: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a picture inside the box, as `resize_with_pad` rounds it.

    Args:
        picture: (H, W) of the camera's picture.
        box: (H, W) of the square.
    """
    ratio = max(picture[1] / box[1], picture[0] / box[0])
    return int(picture[0] / ratio), int(picture[1] / ratio)


def pool_to_patches(
    maps: Tensor, picture: tuple[int, int], box: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """Average maps over the patches of the letterboxed picture. Padding counts as zero.

    Every pixel of a map counts by the area it covers (no pixel is skipped, as interpolation would).

    Args:
        maps: (B, S, h, w) float32 on the whole picture, at any resolution.
        picture: (H, W) of the camera's picture.
        box: (H, W) of the square it is fitted into.
        grid: (gh, gw) patches of the square.

    Returns:
        (B, S, gh * gw).
    """
    inside = letterbox_sides(picture, box)
    rows, columns = (
        _pooling(maps.shape[axis - 2], inside[axis], box[axis], grid[axis], maps.device) for axis in (0, 1)
    )
    return (rows @ maps @ columns.mT).flatten(2)


def region_patches(
    regions: Tensor, picture: tuple[int, int], box: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """How much of each patch lies in regions of the picture.

    Args:
        regions: (R, 4) float32: x0, x1, y0, y1, fractions of the picture.
        picture: (H, W) of the camera's picture.
        box: (H, W) of the square it is fitted into.
        grid: (gh, gw) patches of the square.

    Returns:
        (R, gh * gw).
    """
    x0, x1, y0, y1 = regions.unbind(1)
    inside = letterbox_sides(picture, box)
    rows, columns = (
        _overlap(start * inside[axis] + box[axis] - inside[axis], end * inside[axis] + box[axis] - inside[axis],
                 box[axis], grid[axis])
        for axis, (start, end) in enumerate([(y0, y1), (x0, x1)])
    )  # fmt: skip
    return (rows[:, :, None] * columns[:, None, :]).flatten(1)


def _pooling(cells: int, inside: int, box: int, patches: int, device: torch.device) -> Tensor:
    """Weights that average `cells` of a map over patches, (patches, cells)."""
    borders = box - inside + torch.arange(cells + 1, device=device) * (inside / cells)
    return _overlap(borders[:-1], borders[1:], box, patches).mT


def _overlap(start: Tensor, end: Tensor, box: int, patches: int) -> Tensor:
    """Share of each patch that lies between start and end, (intervals, patches), all in pixels of the box."""
    side = box / patches
    edges = torch.arange(patches + 1, device=start.device) * side
    covered = torch.minimum(end[:, None], edges[1:]) - torch.maximum(start[:, None], edges[:-1])
    return covered.clamp(min=0) / side
