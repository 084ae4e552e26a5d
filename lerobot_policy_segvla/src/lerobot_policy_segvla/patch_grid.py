# SPDX-License-Identifier: Apache-2.0
"""From maps on a camera's picture to the patches of the letterboxed picture that SmolVLA's vision tower sees.

LeRobot fits the picture into a square, keeps its shape, and pads left and top. A patch that is all padding shows
nothing of a map, one at the edge shows part of it.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

type Region = tuple[float, float, float, float]


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
    rows = _weights(maps.shape[-2], inside[0], box[0], grid[0], maps.device)
    columns = _weights(maps.shape[-1], inside[1], box[1], grid[1], maps.device)
    return (rows @ maps @ columns.mT).flatten(2)


def region_patches(
    regions: tuple[Region, ...],
    picture: tuple[int, int],
    box: tuple[int, int],
    grid: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """How much of each patch lies in regions of the picture.

    Args:
        regions: (x0, x1, y0, y1) each, fractions of the picture.
        picture: (H, W) of the camera's picture.
        box: (H, W) of the square it is fitted into.
        grid: (gh, gw) patches of the square.
        device: of the result.

    Returns:
        (R, gh * gw) float32.
    """
    inside = letterbox_sides(picture, box)
    return _region_patches(regions, inside, box, grid, device)


@lru_cache
def _region_patches(
    regions: tuple[Region, ...],
    inside: tuple[int, int],
    box: tuple[int, int],
    grid: tuple[int, int],
    device: torch.device,
) -> Tensor:
    tables = []
    for x0, x1, y0, y1 in regions:
        rows = _overlap(np.array([y0, y1]) * inside[0] + box[0] - inside[0], box[0], grid[0])
        columns = _overlap(np.array([x0, x1]) * inside[1] + box[1] - inside[1], box[1], grid[1])
        tables.append(np.outer(rows, columns).ravel())
    return _tensor(np.array(tables).reshape(len(regions), grid[0] * grid[1]), device)


def _overlap(borders: np.ndarray, box: int, patches: int) -> np.ndarray:
    """Share of each patch that lies between consecutive borders, (intervals, patches), all in pixels of the box."""
    edges = np.arange(patches + 1) * box / patches
    start, end = borders[:-1, None], borders[1:, None]
    covered = np.minimum(end, edges[None, 1:]) - np.maximum(start, edges[None, :-1])
    return np.maximum(covered, 0.0) / (box / patches)


@lru_cache
def _weights(cells: int, inside: int, box: int, patches: int, device: torch.device) -> Tensor:
    """Weights that average `cells` of a map over patches, (patches, cells)."""
    borders = box - inside + np.arange(cells + 1) * inside / cells
    return _tensor(_overlap(borders, box, patches).T, device)


def _tensor(table: np.ndarray, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a cached tensor made under it could not be used in training later
        return torch.from_numpy(np.ascontiguousarray(table, dtype=np.float32)).to(device)
