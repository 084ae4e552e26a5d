# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: masks laid over what a camera sees, with the names of the classes, and disparity in colour."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

_UNTINTED = ("unlabeled", "background", "table")
_GOLDEN = 0.618034  # steps of the golden ratio round the colour circle keep neighbouring ids apart
_STRENGTH = 0.55


def class_colours(class_names: Sequence[str]) -> np.ndarray:
    """One colour per class, (C, 3) uint8 RGB; the same id has the same colour everywhere."""
    hues = [(0.02 + _GOLDEN * id_) % 1 for id_ in range(len(class_names))]
    return np.array(
        [[round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.8, 0.95)] for hue in hues], dtype=np.uint8
    )


def overlay(rgb: np.ndarray, ids: np.ndarray, class_names: Sequence[str], legend: bool = True) -> np.ndarray:
    """Tint a picture by class, and name the classes that are in it.

    Args:
        rgb: (H, W, 3) uint8.
        ids: (h, w) integer class ids; enlarged to the picture.
        class_names: position = id. Unlabeled, background and table are left as they are.
        legend: write the names, on pictures at least 160 pixels wide.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: an id without a name.
    """
    height, width = rgb.shape[:2]
    if int(ids.max(initial=0)) >= len(class_names):
        raise ValueError(
            f"ids: found {int(ids.max())}, expected ids of the {len(class_names)} classes {list(class_names)}."
        )
    ids = _enlarged(ids, (width, height))
    colours = class_colours(class_names)
    mixed = ((1 - _STRENGTH) * rgb + _STRENGTH * colours[ids]).astype(np.uint8)
    tinted = np.isin(ids, [id_ for id_, name in enumerate(class_names) if name not in _UNTINTED])
    result = np.ascontiguousarray(np.where(tinted[..., None], mixed, rgb))  # OpenCV writes into it
    if legend and width >= 160:
        _write_legend(result, [(class_names[id_], colours[id_]) for id_ in np.unique(ids[tinted])])
    return result


def _enlarged(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(ids.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST).astype(np.intp)


def disparity_picture(disparity: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Colour disparity, near = bright.

    Args:
        disparity: (h, w) in 0..255.
        size: (H, W) of the result.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = size or disparity.shape
    grey = cv2.resize(disparity.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    levels = np.clip(grey, 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def side_by_side(
    rgb: np.ndarray, ids: np.ndarray | None, disparity: np.ndarray | None, class_names: Sequence[str]
) -> np.ndarray:
    """A camera's picture, its masks and its disparity in one row, (H, 1..3 x W, 3) uint8."""
    panels = [rgb]
    if ids is not None:
        panels.append(overlay(rgb, ids, class_names))
    if disparity is not None:
        panels.append(disparity_picture(disparity, rgb.shape[:2]))
    return np.hstack(panels)


def _write_legend(picture: np.ndarray, entries: list[tuple[str, np.ndarray]]) -> None:
    scale = max(0.35, picture.shape[1] / 1200)
    line = round(34 * scale)
    for row, (name, colour) in enumerate(entries):
        y = 4 + row * line
        cv2.rectangle(picture, (4, y), (4 + line - 4, y + line - 4), colour.tolist(), -1)
        at = (4 + line, y + line - round(10 * scale))
        for ink, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(picture, name, at, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA)
