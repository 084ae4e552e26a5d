# SPDX-License-Identifier: Apache-2.0
"""How perception is stored in a dataset: as LeRobot's native one-channel 16-bit pictures.

LeRobot calls such a feature a depth map in millimetres. It keeps out of image augmentation and of ImageNet
statistics, comes back as float32 (..., 1, H, W) with every value from 0 to 65535 exact, and is small as PNG.
What a policy reads is made from it, and from live models, to the last bit alike.
"""

import torch
from torch import Tensor

DISPARITY_STEPS = 16  # stored numbers per unit of disparity (0..255), so 0..4080: twelve bits
PROBABILITY_STEPS = 65535  # stored numbers per unit of probability


def encode_ids(ids: Tensor) -> Tensor:
    """(..., h, w) class ids to the stored plane, (..., 1, h, w) int32."""
    return ids.to(torch.int32).unsqueeze(-3)


def decode_ids(plane: Tensor) -> Tensor:
    """The stored plane, (..., 1, h, w) of any real dtype, to (..., h, w) uint8 ids."""
    return plane.squeeze(-3).to(torch.uint8)


def round_disparity(disparity: Tensor) -> Tensor:
    """Round to what a dataset can store, so that live and stored disparity are equal."""
    return (disparity * DISPARITY_STEPS).round() / DISPARITY_STEPS


def cut_off(disparity: Tensor, whole: bool) -> Tensor:
    """Cut off the fractions of disparity, as bytes do, if that is asked for."""
    return disparity.floor() if whole else disparity


def encode_disparity(disparity: Tensor) -> Tensor:
    """(..., h, w) disparity in 0..255 to the stored plane, (..., 1, h, w) int32."""
    return (disparity * DISPARITY_STEPS).round().to(torch.int32).unsqueeze(-3)


def decode_disparity(plane: Tensor) -> Tensor:
    """The stored plane to (..., h, w) float32 disparity in 0..255."""
    return plane.squeeze(-3).to(torch.float32) / DISPARITY_STEPS


def encode_top_k(ids: Tensor, probabilities: Tensor) -> Tensor:
    """Classes (..., k) and their probabilities (..., k, h, w) to a plane of k rows, (..., 1, k, 1 + h * w) int32.

    A row is the id of its class and then its probabilities, row by row of the grid.
    """
    values = (probabilities.flatten(-2) * PROBABILITY_STEPS).round().to(torch.int32)
    return torch.cat([ids.to(torch.int32).unsqueeze(-1), values], -1).unsqueeze(-3)


def decode_top_k(plane: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The stored plane to ids (..., k) int64 and probabilities (..., k, h, w) float32.

    Raises:
        ValueError: the plane is not that of a grid of `size`.
    """
    rows = plane.squeeze(-3)
    if rows.shape[-1] != 1 + size[0] * size[1]:
        raise ValueError(
            f"top-k scores: found rows of {rows.shape[-1]} numbers, expected 1 + {size[0]} x {size[1]}; "
            "the dataset was made with another grid."
        )
    probabilities = rows[..., 1:].to(torch.float32) / PROBABILITY_STEPS
    return rows[..., 0].round().long(), probabilities.unflatten(-1, tuple(size))
