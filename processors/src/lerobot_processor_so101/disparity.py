# SPDX-License-Identifier: Apache-2.0
"""Depth to disparity: recorded depth and what depth models answer go the same way.

In this order: the region is cut out; inverse depth is stretched to 0..255 between the region's farthest and nearest
pixel, before averaging hides them; the result is resized, and rounded to what a dataset can store.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .resize import cut, resize_area, resize_linear
from .stored import round_disparity

Interpolation = Literal["area", "linear"]


def depth_to_disparity[Frames: (Tensor, np.ndarray)](
    depth: Frames,
    valid_max: float | None = None,
    size: tuple[int, int] | None = None,
    region: Sequence[float] | None = None,
    interpolation: Interpolation = "area",
) -> Frames:
    """Turn depth into disparity: inverse depth, stretched per frame to 0..255 (near = 255).

    Stretching per frame removes the unit, so that metres and millimetres give the same picture, and so does
    the scale of an estimated depth. The result is float: rounding to integers would cost far objects their
    detail.

    Args:
        depth: (..., H, W), any real dtype and any unit. Zero, negative, NaN and infinite mean "no measurement".
        valid_max: depth beyond which a sensor is not believed, in the unit of `depth`. None believes it always.
        size: (h, w) to resize to, with rounding to what a dataset can store. None leaves both.
        region: part of the picture to keep and to stretch; see `cut`.
        interpolation: see `resize_disparity`.

    Returns:
        (..., h, w) float32 in [0, 255], the same kind of array as `depth`. Unmeasured pixels are far (0); a
        frame with no contrast, measured or not, is all 0.

    Raises:
        ValueError: a region outside the picture or an unknown interpolation.
    """
    if isinstance(depth, np.ndarray):
        frames = torch.from_numpy(np.ascontiguousarray(depth))
        return depth_to_disparity(frames, valid_max, size, region, interpolation).numpy()
    depth = cut(depth, region).to(torch.float32)
    inverse = depth.reciprocal()
    measured = torch.isfinite(inverse) & (inverse > 0)  # rules out depths of 0, NaN, inf and below 0 at once
    if valid_max is not None:
        measured &= depth <= valid_max
    disparity = stretch(inverse, measured)
    return disparity if size is None else resize_disparity(disparity, size, interpolation)


def inverse_to_disparity(
    inverse: Tensor,
    size: tuple[int, int],
    region: Sequence[float] | None = None,
    interpolation: Interpolation = "area",
) -> Tensor:
    """Turn a depth model's answer into disparity, as `depth_to_disparity` does with depth.

    Args:
        inverse: (B, H, W) inverse depth of any scale and offset, on the model's grid.
        size: (h, w) of the result.
        region: part of the picture to keep and to stretch; see `cut`.
        interpolation: see `resize_disparity`.

    Returns:
        (B, h, w) float32 in [0, 255], near = 255, in sixteenths; a frame without contrast is all 0.

    Raises:
        ValueError: NaN or infinite values, a region outside the picture, an unknown interpolation.
    """
    inverse = cut(inverse, region).float()
    if not bool(inverse.isfinite().all()):
        raise ValueError(
            "inverse depth: found NaN or infinite values, expected finite ones. The depth model's weights are damaged."
        )
    return resize_disparity(stretch(inverse), size, interpolation)


def stretch(inverse: Tensor, measured: Tensor | None = None) -> Tensor:
    """Stretch each frame to 0..255 between its farthest and its nearest measured pixel.

    Args:
        inverse: (..., H, W) float32 inverse depth.
        measured: (..., H, W) bool; None for all.

    Returns:
        (..., H, W); 0 where nothing was measured, and everywhere in a frame without contrast.
    """
    if measured is None:
        measured = torch.ones_like(inverse, dtype=torch.bool)
    near = inverse.where(measured, -torch.inf).amax((-2, -1), keepdim=True)
    far = inverse.where(measured, torch.inf).amin((-2, -1), keepdim=True)
    disparity = (inverse - far) * (255.0 / (near - far))
    # The minimum guards the last bit: (near - far) * (255 / (near - far)) may round above 255.
    return disparity.clamp(max=255.0).where(measured & (near > far), 0.0)


def resize_disparity(
    disparity: Tensor, size: tuple[int, int], interpolation: Interpolation = "area"
) -> Tensor:
    """Resize disparity and round it to what a dataset can store.

    Args:
        disparity: (..., H, W) float32 in 0..255.
        size: (h, w) of the result.
        interpolation: "area" averages what lies under a new pixel, as OpenCV's INTER_AREA; "linear" is its
            INTER_LINEAR. Enlarging is always linear.

    Raises:
        ValueError: an unknown interpolation.
    """
    if interpolation not in ("area", "linear"):
        raise ValueError(f"interpolation: found {interpolation!r}, expected 'area' or 'linear'.")
    enlarges = size[0] > disparity.shape[-2] or size[1] > disparity.shape[-1]
    resize = resize_linear if enlarges or interpolation == "linear" else resize_area
    return round_disparity(resize(disparity, size))
