# SPDX-License-Identifier: Apache-2.0
"""Draw the patches that each cue token pools, and the geometry, for `so101-view --checkpoint=...`."""

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from .configuration_segvla import PER_CLASS
from .cues import CameraInput, Cues

TILE = 192  # pixels
COLUMNS = 6


def draw_cues(
    camera: CameraInput, cues: Cues, class_names: Sequence[str], geometry_names: Sequence[str]
) -> np.ndarray:
    """Draw the first sample of a batch.

    Args:
        camera, cues: the input and its cues.
        class_names: position = id.
        geometry_names: of the geometry classes, in order.

    Returns:
        (H, W, 3) uint8: a tile of the letterboxed image with the geometry as text, then a tile per token,
        bright where the token has evidence.
    """
    pixels = ((camera.pixels[0].float().permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().astype(np.uint8)
    image = cv2.resize(pixels, (TILE, TILE), interpolation=cv2.INTER_AREA)
    ids = cues.class_ids[0].tolist()
    regions = cues.tokens.shape[1] - 1 - len(ids)
    names = ["task", *(class_names[id_] if id_ >= 0 else "-" for id_ in ids)]
    names += [f"task, region {number + 1}" for number in range(regions)]
    tiles = [_with_text(image, _geometry_lines(cues.geometry, geometry_names))]
    for name, evidence, presence in zip(names, cues.evidence[0], cues.presence[0], strict=True):
        side = round(len(evidence) ** 0.5)  # the grid of patches is square
        heat = evidence.float().cpu().numpy().reshape(side, -1)
        light = cv2.resize(heat, (TILE, TILE), interpolation=cv2.INTER_NEAREST)[..., None].clip(0, 1)
        tile = (image * (0.2 + 0.8 * light)).astype(np.uint8)
        tiles.append(_with_text(tile, [f"{name} {float(presence):.2f}"]))
    tiles += [np.zeros_like(image)] * (-len(tiles) % COLUMNS)
    rows = [np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    return np.vstack(rows)


def _geometry_lines(geometry: Tensor | None, names: Sequence[str]) -> list[str]:
    if geometry is None:
        return []
    numbers = geometry[0, : PER_CLASS * len(names)].unflatten(0, (-1, PER_CLASS)).tolist()
    return [
        f"{name} {x:+.2f} {y:+.2f} {size:.2f}" if presence > 0.01 else f"{name} absent"
        for name, (presence, x, y, size) in zip(names, numbers, strict=True)
    ]


def _with_text(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    result = image.copy()
    for row, line in enumerate(lines):
        position = (4, 14 + 14 * row)
        for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):  # a black outline below white text
            cv2.putText(result, line, position, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, width, cv2.LINE_AA)
    return result
