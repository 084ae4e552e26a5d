# SPDX-License-Identifier: Apache-2.0
"""Images for display: masks over a camera's image, with the names of the classes, and disparity in colour."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

_UNTINTED = ("unlabeled", "background", "table")
_GOLDEN_RATIO = 0.618034  # as a step of the hue, it keeps neighbouring ids apart
_STRENGTH = 0.55
_LEGEND_WIDTH = 160  # pixels; below it names are unreadable


def class_palette(class_names: Sequence[str]) -> np.ndarray:
    """Return one colour per class, (C, 3) uint8 RGB; the colour of an id does not depend on the classes."""
    hues = [(0.02 + _GOLDEN_RATIO * id_) % 1 for id_ in range(len(class_names))]
    colours = [[round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.8, 0.95)] for hue in hues]
    return np.array(colours, dtype=np.uint8)


def overlay(rgb: np.ndarray, ids: np.ndarray, class_names: Sequence[str], legend: bool = True) -> np.ndarray:
    """Return an image (H, W, 3) uint8, tinted by class, with the names of its classes.

    Args:
        rgb: (H, W, 3) uint8.
        ids: (h, w) integer class ids; enlarged to the image.
        class_names: position = id. Unlabeled, background and table are not tinted.
        legend: write the names, on images at least 160 pixels wide.

    Raises:
        ValueError: if an id has no name.
    """
    height, width = rgb.shape[:2]
    if int(ids.max(initial=0)) >= len(class_names):
        found, names = int(ids.max()), list(class_names)
        raise ValueError(f"ids: found {found}, expected ids of the {len(names)} classes {names}.")
    ids = cv2.resize(ids.astype(np.uint16), (width, height), interpolation=cv2.INTER_NEAREST).astype(np.intp)
    palette = class_palette(class_names)
    mixed = ((1 - _STRENGTH) * rgb + _STRENGTH * palette[ids]).astype(np.uint8)
    tinted = np.isin(ids, [id_ for id_, name in enumerate(class_names) if name not in _UNTINTED])
    result = np.ascontiguousarray(np.where(tinted[..., None], mixed, rgb))  # OpenCV writes into it
    if legend and width >= _LEGEND_WIDTH:
        _write_legend(result, [(class_names[id_], palette[id_]) for id_ in np.unique(ids[tinted])])
    return result


def disparity_image(disparity: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Colour disparity (h, w) in 0..255, near = bright; (H, W, 3) uint8 RGB, (H, W) = `size` or its own."""
    height, width = size or disparity.shape
    grey = cv2.resize(disparity.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    levels = np.clip(grey, 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def side_by_side(
    rgb: np.ndarray, ids: np.ndarray | None, disparity: np.ndarray | None, class_names: Sequence[str]
) -> np.ndarray:
    """Return a camera's image, its masks and its disparity in one row, (H, 1..3 x W, 3) uint8."""
    panels = [rgb]
    if ids is not None:
        panels.append(overlay(rgb, ids, class_names))
    if disparity is not None:
        panels.append(disparity_image(disparity, rgb.shape[:2]))
    return np.hstack(panels)


def _write_legend(image: np.ndarray, entries: list[tuple[str, np.ndarray]]) -> None:
    scale = max(0.35, image.shape[1] / 1200)
    line = round(34 * scale)
    for row, (name, colour) in enumerate(entries):
        y = 4 + row * line
        cv2.rectangle(image, (4, y), (4 + line - 4, y + line - 4), colour.tolist(), -1)
        position = (4 + line, y + line - round(10 * scale))
        for ink, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):  # white with a black outline
            cv2.putText(image, name, position, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA)
