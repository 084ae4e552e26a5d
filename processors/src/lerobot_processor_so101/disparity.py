# SPDX-License-Identifier: Apache-2.0
"""Metric depth to disparity."""

import numpy as np
import torch
from torch import Tensor


def depth_to_disparity[Frames: (Tensor, np.ndarray)](depth: Frames, valid_max: float | None = None) -> Frames:
    """Turn depth into disparity: inverse depth, stretched per frame to 0..255 (near = 255).

    Stretching per frame removes the unit, so that metres and millimetres give the same picture, and so does
    the scale of an estimated depth. The result is float: rounding to integers would cost far objects their
    detail.

    Args:
        depth: (..., H, W), any real dtype and any unit. Zero, negative, NaN and infinite mean "no measurement".
        valid_max: depth beyond which a sensor is not believed, in the unit of `depth`. None believes it always.

    Returns:
        (..., H, W) float32 in [0, 255], the same kind of array as `depth`. Unmeasured pixels are far (0); a
        frame with no contrast, measured or not, is all 0.
    """
    if isinstance(depth, np.ndarray):
        return _disparity(torch.from_numpy(np.ascontiguousarray(depth)), valid_max).numpy()
    return _disparity(depth, valid_max)


def _disparity(depth: Tensor, valid_max: float | None) -> Tensor:
    depth = depth.to(torch.float32)
    inverse = depth.reciprocal()
    measured = torch.isfinite(inverse) & (inverse > 0)  # rules out depths of 0, NaN, inf and below 0 at once
    if valid_max is not None:
        measured &= depth <= valid_max
    near = inverse.where(measured, -torch.inf).amax((-2, -1), keepdim=True)
    far = inverse.where(measured, torch.inf).amin((-2, -1), keepdim=True)
    disparity = (inverse - far) * (255.0 / (near - far))
    # The minimum guards the last bit: (near - far) * (255 / (near - far)) may round above 255.
    return disparity.clamp(max=255.0).where(measured & (near > far), 0.0)
