# SPDX-License-Identifier: Apache-2.0
"""What one camera's masks and disparity become before they meet the state."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lerobot_processor_so101 import GEOMETRY_FEATURES, class_masks, mask_geometry, resize_area

_POOLED = 21  # side of the maps the convolutions see, in pixels
_SMALLEST = 6  # side at which a linear layer takes over


class RunningStandardizer(nn.Module):
    """Shift and scale every feature to mean 0 and standard deviation 1, as seen in training so far.

    Unlike batch normalisation, training and inference apply the same function: a regressor would otherwise learn
    on the noise of batch statistics and act without it. Two guards serve inputs that training never had, such
    as an object that disappears for the first time: small deviations are not blown up, and the result is
    clipped.
    """

    mean: Tensor
    var: Tensor
    n_batches: Tensor

    MIN_STD = 0.01
    LIMIT = 5.0
    MEMORY = 1000  # batches; old ones fade, so that resumed and fine-tuned training adapts

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.register_buffer("n_batches", torch.tensor(0.0))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, D), within -LIMIT..LIMIT."""
        if self.training:
            self._observe(features)
        std = self.var.sqrt().clamp(min=self.MIN_STD)
        return ((features - self.mean) / std).clamp(-self.LIMIT, self.LIMIT)

    @torch.no_grad()
    def _observe(self, features: Tensor) -> None:
        self.n_batches += 1
        weight = 1 / self.n_batches.clamp(max=self.MEMORY)
        shift = features.mean(0) - self.mean
        spread = features.var(0, correction=0)
        # The variance of a mixture: within its parts, and between their means.
        self.var.copy_((1 - weight) * (self.var + weight * shift**2) + weight * spread)
        self.mean += weight * shift


class GeometryEncoder(nn.Module):
    """Where each watched object is: `mask_geometry`, standardised. Nothing in it is trained by gradients."""

    def __init__(self, class_ids: Sequence[int]):
        super().__init__()
        self.class_ids = tuple(class_ids)
        self.output_dim = len(self.class_ids) * len(GEOMETRY_FEATURES)
        self.standardize = RunningStandardizer(self.output_dim)

    def forward(self, ids: Tensor, disparity: Tensor) -> Tensor:
        """Encode ids (B, h, w) and disparity (B, h, w) in [0, 1] as (B, output_dim)."""
        with torch.no_grad():
            geometry = mask_geometry(ids, disparity, self.class_ids)  # (B, C, F)
            return self.standardize(geometry.flatten(1))


class ConvEncoder(nn.Module):
    """What the objects look like: a small convolutional network on coarse masks and disparity.

    It sees averages over blocks, not single pixels: cheap enough to train on a CPU, and indifferent to the
    ragged edges of real masks.

    Args:
        class_ids: the C classes to look for.
        channels: of the first convolution.
    """

    def __init__(self, class_ids: Sequence[int], channels: int):
        super().__init__()
        self.class_ids = tuple(class_ids)
        self.net, self.output_dim = _convolutions(len(self.class_ids) + 1, channels, _POOLED)

    def forward(self, ids: Tensor, disparity: Tensor) -> Tensor:
        """Encode ids (B, h, w) and disparity (B, h, w) in [0, 1] as (B, output_dim)."""
        with torch.no_grad():
            maps = torch.cat(
                [class_masks(ids, self.class_ids), disparity[:, None]], dim=1
            )  # (B, C + 1, h, w)
            coarse = resize_area(maps, (_POOLED, _POOLED))
        return self.net(coarse)


class ColorEncoder(nn.Module):
    """The baseline without perception: the same kind of convolutions, more of them, on colours at full size.

    Args:
        side: of the square that pictures are resized to, in pixels.
        channels: of the first convolution.
    """

    def __init__(self, side: int, channels: int):
        super().__init__()
        self.side = side
        self.net, self.output_dim = _convolutions(3, channels, side)

    def forward(self, pictures: Tensor) -> Tensor:
        """Encode pictures (B, 3, h, w) in [0, 1] as (B, output_dim)."""
        return self.net(resize_area(pictures, (self.side, self.side)) - 0.5)


def _convolutions(inputs: int, channels: int, side: int) -> tuple[nn.Sequential, int]:
    """Halve a square picture until at most six pixels are left, and the width of what comes out."""
    layers: list[nn.Module] = []
    width = channels
    while side > _SMALLEST:
        layers += [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.SiLU()]
        inputs, width, side = width, 2 * channels, (side + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * side * side, 4 * channels)), 4 * channels
