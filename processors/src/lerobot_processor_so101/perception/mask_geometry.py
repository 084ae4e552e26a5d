# SPDX-License-Identifier: Apache-2.0
"""Mask geometry: a few numbers per class that describe position, size, shape and disparity of its mask.

Three choices make the numbers comparable between images:
- moments are integrals over the squares of the pixels, not sums over their centres, so that an image and the
  same image at twice the resolution give the same numbers;
- they are computed about the centroid in a second pass, because the difference of raw moments in float32
  loses most digits of a small object near the border;
- an absent object is all zeros, which is also the limit of a vanishing one for presence and area.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

GEOMETRY_FEATURES: tuple[str, ...] = (
    "presence",  # 1 if any pixel has the class; else 0, as all features below
    "log_area",  # log(1 + area in 1/10000 of the image)
    "x",  # centroid, right positive
    "y",  # centroid, down positive
    "spread_x",  # standard deviation along x
    "spread_y",  # standard deviation along y
    "correlation",  # of x and y, -1..1
    "cos3",  # 3-fold angular moment: rotates by 3a with an object that rotates by a
    "sin3",
    "cos4",  # 4-fold angular moment: the yaw of a square modulo 90 deg
    "sin4",
    "disparity",  # mean over the mask, 0..1
    "x_min",  # outer edges
    "x_max",
    "y_min",
    "y_max",
)

_AREA_UNIT = 1e-4  # of the image, about one pixel of 84 x 84
_TINY = 1e-12


def class_masks(ids: Tensor, class_ids: Sequence[int] | Tensor) -> Tensor:
    """Return one mask per class, (B, C, H, W) float32, 1 where the pixel has the class.

    Args:
        ids: (B, H, W) integer class ids.
        class_ids: ids of the C classes; a tensor (B, C) has other classes for each sample.

    Raises:
        TypeError: if `ids` is not an integer tensor.
        ValueError: if `ids` is not (B, H, W).
    """
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"ids: found {ids.dtype}, expected an integer dtype.")
    if ids.ndim != 3:
        raise ValueError(f"ids: found shape {tuple(ids.shape)}, expected (B, H, W).")
    classes = torch.as_tensor(class_ids, dtype=torch.float32, device=ids.device)[..., None, None]
    masks = torch.empty(len(ids), classes.shape[-3], *ids.shape[1:], device=ids.device)
    # float32 throughout: with masks of bool in between this takes four times as long
    return torch.eq(ids.to(torch.float32)[:, None], classes, out=masks)


def mask_geometry(ids: Tensor, disparity: Tensor, class_ids: Sequence[int] | Tensor) -> Tensor:
    """Compute `GEOMETRY_FEATURES` of each class, (B, C, F); see `class_masks` and `geometry_of_masks`."""
    return geometry_of_masks(class_masks(ids, class_ids), disparity)


def geometry_of_masks(masks: Tensor, disparity: Tensor) -> Tensor:
    """Compute `GEOMETRY_FEATURES` of masks, (B, C, F) float32, always finite; zeros for an empty mask.

    Coordinates are isotropic: the longer side of the image spans [-1, 1], the shorter one less, so that
    angles are those in the image.

    Args:
        masks: (B, C, H, W) float32, of zeros and ones.
        disparity: (B, H, W) in [0, 1], near = 1, finite.

    Raises:
        ValueError: if `disparity` has another shape than the masks.
    """
    batch, _, height, width = masks.shape
    if disparity.shape != (batch, height, width):
        raise ValueError(
            f"disparity: found {tuple(disparity.shape)}, expected {(batch, height, width)} as the masks."
        )
    half = 1.0 / max(height, width)  # half the side of a pixel
    x = _centres(width, half, masks.device)
    y = _centres(height, half, masks.device)
    columns, rows = masks.sum(-2), masks.sum(-1)  # (B, C, W), (B, C, H)
    area = columns.sum(-1)  # (B, C), pixels
    count = area.clamp(min=1)

    cx, cy = (columns @ x) / count, (rows @ y) / count
    # means of x^p y^q over each mask, about its centroid: (B, C, 5, H) @ masks @ (B, C, W, 5) -> [q, p]
    x_powers, y_powers = (_powers(t, half) for t in (x - cx[..., None], y - cy[..., None]))
    moments = y_powers.mT @ masks @ x_powers / count[..., None, None]
    mean_disparity = (disparity.float().flatten(1)[:, None] @ masks.flatten(2).mT).squeeze(1) / count
    features = torch.stack(
        [
            torch.ones_like(area),
            torch.log1p(area / (height * width * _AREA_UNIT)),
            cx,
            cy,
            *_shape_features(moments),
            mean_disparity,
            *_extent(columns, x, half),
            *_extent(rows, y, half),
        ],
        dim=-1,
    )
    return features.where(area[..., None] > 0, 0.0)


def _centres(count: int, half: float, device: torch.device) -> Tensor:
    """Return the coordinates of the pixel centres along one side, (count,)."""
    return (2 * torch.arange(count, dtype=torch.float32, device=device) + 1 - count) * half


def _powers(x: Tensor, half: float) -> Tensor:
    """Return the mean of t^p over the pixel [x - half, x + half] for p = 0..4, stacked last."""
    x2, h2 = x * x, half * half
    powers = [torch.ones_like(x), x, x2 + h2 / 3, x * (x2 + h2), x2 * (x2 + 2 * h2) + h2 * h2 / 5]
    return torch.stack(powers, dim=-1)


def _shape_features(moments: Tensor) -> tuple[Tensor, ...]:
    """Compute spread and angular moments from central moments, (B, C, 5, 5) indexed [q, p].

    With z = x + iy, the k-fold angular moment is E[z^k] over a scale that bounds it by 1: E|z|^4 for k = 4,
    and by Cauchy-Schwarz sqrt(E|z|^2 E|z|^4) for k = 3.
    """

    def m(p: int, q: int) -> Tensor:
        return moments[..., q, p]

    spread_x, spread_y = m(2, 0).clamp(min=_TINY).sqrt(), m(0, 2).clamp(min=_TINY).sqrt()
    radius2 = m(2, 0) + m(0, 2)
    radius4 = (m(4, 0) + 2 * m(2, 2) + m(0, 4)).clamp(min=_TINY)
    radius3 = (radius2 * radius4).clamp(min=_TINY * _TINY).sqrt()
    return (
        spread_x,
        spread_y,
        m(1, 1) / (spread_x * spread_y),
        (m(3, 0) - 3 * m(1, 2)) / radius3,
        (3 * m(2, 1) - m(0, 3)) / radius3,
        (m(4, 0) - 6 * m(2, 2) + m(0, 4)) / radius4,
        (4 * m(3, 1) - 4 * m(1, 3)) / radius4,
    )


def _extent(profile: Tensor, centres: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """Return the outer edges of a mask from its projection on one axis, (B, C) each."""
    inside = profile > 0
    low, high = centres.where(inside, torch.inf).amin(-1), centres.where(inside, -torch.inf).amax(-1)
    return low - half, high + half
