# SPDX-License-Identifier: Apache-2.0
"""Encode perception for a dataset, as LeRobot's native one-channel 16-bit images.

LeRobot calls such a feature a depth map in millimetres. It excludes it from image augmentation and ImageNet
statistics, reads it as float32 (..., 1, H, W) with every value from 0 to 65535 exact, and stores it as a
small PNG. Decoded features equal those of live models to the last bit.
"""

import torch
from torch import Tensor

DISPARITY_STEPS = 16  # steps per unit of disparity; 0..255 is stored as 0..4080, twelve bits
PROBABILITY_STEPS = 65535  # steps per unit of probability


def encode_ids(ids: Tensor) -> Tensor:
    """Encode (..., h, w) class ids as (..., 1, h, w) int32."""
    return ids.to(torch.int32).unsqueeze(-3)


def decode_ids(plane: Tensor) -> Tensor:
    """Decode (..., 1, h, w) of any real dtype to (..., h, w) uint8 class ids."""
    return plane.squeeze(-3).to(torch.uint8)


def round_disparity(disparity: Tensor) -> Tensor:
    """Round to what a dataset can store, so that live and stored disparity are equal."""
    return (disparity * DISPARITY_STEPS).round() / DISPARITY_STEPS


def floor_disparity(disparity: Tensor, quantised: bool) -> Tensor:
    """Floor disparity to integers, as a conversion to bytes does, if `quantised`."""
    return disparity.floor() if quantised else disparity


def encode_disparity(disparity: Tensor) -> Tensor:
    """Encode (..., h, w) disparity in 0..255 as (..., 1, h, w) int32."""
    return (disparity * DISPARITY_STEPS).round().to(torch.int32).unsqueeze(-3)


def decode_disparity(plane: Tensor) -> Tensor:
    """Decode (..., 1, h, w) to (..., h, w) float32 disparity in 0..255."""
    return plane.squeeze(-3).to(torch.float32) / DISPARITY_STEPS


def encode_top_k(ids: Tensor, probabilities: Tensor) -> Tensor:
    """Encode classes (..., k) and their probabilities (..., k, h, w) as k rows, (..., 1, k, 1 + h * w) int32.

    A row contains the id of a class and then its probabilities, row by row of the grid.
    """
    values = (probabilities.flatten(-2) * PROBABILITY_STEPS).round().to(torch.int32)
    return torch.cat([ids.to(torch.int32).unsqueeze(-1), values], -1).unsqueeze(-3)


def decode_top_k(plane: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Decode k rows to ids (..., k) int64 and probabilities (..., k, h, w) float32.

    Raises:
        ValueError: if the rows do not fit a grid of `size`.
    """
    rows = plane.squeeze(-3)
    if rows.shape[-1] != 1 + size[0] * size[1]:
        raise ValueError(
            f"top-k scores: found rows of {rows.shape[-1]} numbers, expected 1 + {size[0]} x {size[1]}; "
            "the dataset was computed with another grid."
        )
    probabilities = rows[..., 1:].to(torch.float32) / PROBABILITY_STEPS
    return rows[..., 0].round().long(), probabilities.unflatten(-1, tuple(size))
