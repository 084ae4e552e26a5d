# SPDX-License-Identifier: Apache-2.0
"""Depth to disparity; the same for recorded depth and for the output of depth models.

The order matters: the region is cropped; inverse depth is normalised to 0..255 between the region's farthest
and nearest pixel, before averaging removes them; the result is resized and rounded to what a dataset stores.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .resize import crop_region, resize_area, resize_linear
from .stored import round_disparity

Interpolation = Literal["area", "linear"]


def depth_to_disparity[Frames: (Tensor, np.ndarray)](
    depth: Frames,
    valid_max: float | None = None,
    size: tuple[int, int] | None = None,
    region: Sequence[float] | None = None,
    interpolation: Interpolation = "area",
) -> Frames:
    """Convert depth to disparity: inverse depth, normalised per frame to 0..255 (near = 255).

    Normalising per frame removes the unit and the scale, so that metres, millimetres and estimated depth give
    the same result. The result is float: integers would remove the detail of far objects.

    Args:
        depth: (..., H, W), any real dtype and any unit. Zero, negative, NaN and infinite are unmeasured.
        valid_max: largest depth the sensor measures reliably, in the unit of `depth`. None for no limit.
        size: (h, w) to resize to, with rounding to what a dataset can store. None leaves both.
        region: part of the image to crop and normalise; see `crop_region`.
        interpolation: see `resize_disparity`.

    Returns:
        (..., h, w) float32 in [0, 255], the same kind of array as `depth`. Unmeasured pixels are far (0); a
        frame without contrast, measured or not, is all 0.

    Raises:
        ValueError: if the region is not inside the image, or the interpolation is unknown.
    """
    if isinstance(depth, np.ndarray):
        frames = torch.from_numpy(np.ascontiguousarray(depth))
        return depth_to_disparity(frames, valid_max, size, region, interpolation).numpy()
    depth = crop_region(depth, region).to(torch.float32)
    inverse = depth.reciprocal()
    measured = torch.isfinite(inverse) & (inverse > 0)  # excludes depths of 0, NaN, inf and below 0 at once
    if valid_max is not None:
        measured &= depth <= valid_max
    disparity = normalise_per_frame(inverse, measured)
    return disparity if size is None else resize_disparity(disparity, size, interpolation)


def inverse_to_disparity(
    inverse: Tensor,
    size: tuple[int, int],
    region: Sequence[float] | None = None,
    interpolation: Interpolation = "area",
) -> Tensor:
    """Convert the output of a depth model to disparity, as `depth_to_disparity` converts depth.

    Args:
        inverse: (B, H, W) inverse depth of any scale and offset, on the model's grid.
        size, region, interpolation: as for `depth_to_disparity`.

    Returns:
        (B, h, w) float32 in [0, 255], near = 255, in sixteenths; a frame without contrast is all 0.

    Raises:
        ValueError: if values are NaN or infinite, or the region or interpolation is invalid.
    """
    inverse = crop_region(inverse, region).float()
    if not bool(inverse.isfinite().all()):
        raise ValueError(
            "inverse depth: found NaN or infinite, expected finite. The depth model's weights are damaged."
        )
    return resize_disparity(normalise_per_frame(inverse), size, interpolation)


def normalise_per_frame(inverse: Tensor, measured: Tensor | None = None) -> Tensor:
    """Normalise each frame to 0..255 between its farthest and its nearest measured pixel.

    Args:
        inverse: (..., H, W) float32 inverse depth.
        measured: (..., H, W) bool; None for all. Others become 0, as does a frame without contrast.
    """
    if measured is None:
        measured = torch.ones_like(inverse, dtype=torch.bool)
    near = inverse.where(measured, -torch.inf).amax((-2, -1), keepdim=True)
    far = inverse.where(measured, torch.inf).amin((-2, -1), keepdim=True)
    disparity = (inverse - far) * (255.0 / (near - far))
    # The clamp is for the last bit: (near - far) * (255 / (near - far)) may round above 255.
    return disparity.clamp(max=255.0).where(measured & (near > far), 0.0)


def resize_disparity(
    disparity: Tensor, size: tuple[int, int], interpolation: Interpolation = "area"
) -> Tensor:
    """Resize disparity, (..., H, W) float32 in 0..255, to (h, w) and round it to what a dataset can store.

    "area" averages the area under a new pixel, as OpenCV's INTER_AREA; "linear" is its INTER_LINEAR, which is
    always used to enlarge.

    Raises:
        ValueError: if the interpolation is unknown.
    """
    if interpolation not in ("area", "linear"):
        raise ValueError(f"interpolation: found {interpolation!r}, expected 'area' or 'linear'.")
    enlarges = size[0] > disparity.shape[-2] or size[1] > disparity.shape[-1]
    resize = resize_linear if enlarges or interpolation == "linear" else resize_area
    return round_disparity(resize(disparity, size))
