# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: masks laid over what a camera sees, and the frames of evaluation films."""

from __future__ import annotations

import numpy as np

from .world import World

# Colours of the masks by class id: unlabeled, background and table stay as they are, then one per class.
_PALETTE = np.array(
    [[0, 0, 0], [0, 0, 0], [0, 0, 0], [230, 60, 50], [40, 160, 230], [250, 160, 30], [170, 80, 220], [60, 190, 90],
     [240, 220, 60], [90, 110, 240], [240, 240, 240]],
    dtype=np.uint8,
)  # fmt: skip
_FIRST_TINTED = 3


def overlay(rgb: np.ndarray, ids: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """Tint (H, W, 3) uint8 by class ids (H, W); background and table are left as they are."""
    tint = _PALETTE[np.minimum(ids, len(_PALETTE) - 1)]
    mixed = ((1 - strength) * rgb + strength * tint).astype(np.uint8)
    return np.where((ids >= _FIRST_TINTED)[..., None], mixed, rgb)


def film_frame(world: World, masks: bool = False, side: int = 360) -> np.ndarray:
    """The arm from the front (square, `side` pixels) with the top and wrist views stacked beside it.

    Returns:
        (side, 3 * side / 2, 3) uint8.
    """
    half = side // 2
    insets = []
    for camera in ("top", "wrist"):
        frame = world.render(camera, half, half, ids=True)
        assert frame.rgb is not None
        assert frame.ids is not None
        insets.append(overlay(frame.rgb, frame.ids) if masks else frame.rgb)
    front = world.render("front", side, side).rgb
    assert front is not None
    return np.hstack([front, np.vstack(insets)])
