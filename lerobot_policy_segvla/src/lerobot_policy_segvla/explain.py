# SPDX-License-Identifier: Apache-2.0
"""A picture of what each cue token reads, and of the geometry, for `so101-view --checkpoint=...`."""

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from .cues import PER_CLASS, Cues, View

TILE = 192  # pixels
COLUMNS = 6
_WHITE = (255, 255, 255)


def draw_cues(
    view: View, cues: Cues, class_names: Sequence[str], geometry_names: Sequence[str]
) -> np.ndarray:
    """Draw the first sample of a batch.

    Args:
        view: the camera.
        cues: what was made of it.
        class_names: position = id.
        geometry_names: of the classes whose geometry is told, in order.

    Returns:
        (H, W, 3) uint8: the letterboxed picture with the geometry written on it, then a tile per token, bright
        where it reads.
    """
    pixels = ((view.pixels[0].float().permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().astype(np.uint8)
    picture = cv2.resize(pixels, (TILE, TILE), interpolation=cv2.INTER_AREA)
    ids = [int(id_) for id_ in cues.class_ids[0]]
    regions = cues.tokens.shape[1] - 1 - len(ids)
    names = ["task", *(class_names[id_] if id_ >= 0 else "-" for id_ in ids)]
    names += [f"task, region {number + 1}" for number in range(regions)]
    tiles = [_geometry(picture, cues.geometry, geometry_names)]
    for name, where, presence in zip(names, cues.where[0], cues.presence[0], strict=True):
        tiles.append(_tile(picture, where, f"{name} {float(presence):.2f}"))
    tiles += [np.zeros_like(picture)] * (-len(tiles) % COLUMNS)
    rows = [np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    return np.vstack(rows)


def _tile(picture: np.ndarray, where: Tensor, title: str) -> np.ndarray:
    """The picture, dark where a token does not read."""
    side = round(len(where) ** 0.5)
    heat = where.float().cpu().numpy().reshape(side, -1)
    light = cv2.resize(heat, (TILE, TILE), interpolation=cv2.INTER_NEAREST)[..., None].clip(0, 1)
    return _written((picture * (0.2 + 0.8 * light)).astype(np.uint8), [title])


def _geometry(picture: np.ndarray, geometry: Tensor | None, names: Sequence[str]) -> np.ndarray:
    lines = []
    numbers = (
        []
        if geometry is None
        else geometry[0, : PER_CLASS * len(names)].unflatten(0, (-1, PER_CLASS)).tolist()
    )
    for name, (presence, x, y, size) in zip(names, numbers, strict=True):
        lines.append(f"{name} {x:+.2f} {y:+.2f} {size:.2f}" if presence > 0.01 else f"{name} absent")
    return _written(picture, lines)


def _written(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    result = picture.copy()
    for row, line in enumerate(lines):
        for colour, width in (((0, 0, 0), 3), (_WHITE, 1)):
            cv2.putText(
                result, line, (4, 14 + 14 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, width, cv2.LINE_AA
            )
    return result
