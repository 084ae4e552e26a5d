# SPDX-License-Identifier: Apache-2.0
"""Encoders of one camera: masks and disparity, or RGB images, to a vector of features.

What is unusual about them: features of mask geometry are standardised by running statistics, which are the
same function in training and inference, and the convolutions run on 21 x 21 averages of masks instead of
pixels.
"""

import torch
from torch import Tensor, nn

from lerobot_processor_so101 import GEOMETRY_FEATURES, geometry_of_masks, resize_area

_COARSE = 21  # side of the maps for the convolutions [pixels]
_SMALLEST = 6  # largest side of a map that a linear layer reads [pixels]


class RunningStandardizer(nn.Module):
    """Shift and scale every feature to mean 0 and standard deviation 1 over the training so far.

    Unlike batch normalisation, training and inference apply the same function: a regressor would otherwise
    train with the noise of batch statistics and run without it. Two guards serve inputs that training never
    had, such as an object that disappears for the first time: small deviations are not amplified, and the
    output is clipped.
    """

    mean: Tensor
    var: Tensor
    n_batches: Tensor

    MIN_STD = 0.01
    LIMIT = 5.0
    MEMORY = 1000  # batches; older ones fade, so that resumed training and fine-tuning adapt

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.register_buffer("n_batches", torch.tensor(0.0))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise features: (B, D) -> (B, D), within -LIMIT..LIMIT."""
        if self.training:
            self._update(features)
        std = self.var.sqrt().clamp(min=self.MIN_STD)
        return ((features - self.mean) / std).clamp(-self.LIMIT, self.LIMIT)

    @torch.no_grad()
    def _update(self, features: Tensor) -> None:
        self.n_batches += 1
        weight = 1 / self.n_batches.clamp(max=self.MEMORY)
        shift = features.mean(0) - self.mean
        # Variance of a mixture: within its parts, plus between their means.
        within = features.var(0, correction=0)
        self.var.copy_((1 - weight) * (self.var + weight * shift**2) + weight * within)
        self.mean += weight * shift


class GeometryEncoder(nn.Module):
    """Compute the standardised `mask_geometry` of each of C watched classes; no gradients train it."""

    def __init__(self, classes: int):
        super().__init__()
        self.output_dim = classes * len(GEOMETRY_FEATURES)
        self.standardize = RunningStandardizer(self.output_dim)

    @torch.no_grad()
    def forward(self, masks: Tensor, disparity: Tensor) -> Tensor:
        """Encode masks (B, C, h, w) and disparity (B, h, w) in 0..1 as (B, output_dim)."""
        # 1. 16 numbers per class: (B, C, h, w) -> (B, C, 16)
        geometry = geometry_of_masks(masks, disparity)
        # 2. standardise: (B, C * 16)
        return self.standardize(geometry.flatten(1))


class ConvEncoder(nn.Module):
    """Encode shapes of C watched classes by a small convolutional network on coarse masks and disparity.

    Averages over blocks instead of pixels make it cheap enough for training on a CPU, and robust to the
    ragged edges of estimated masks.
    """

    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.net, self.output_dim = _convolutions(classes + 1, channels, _COARSE)

    def forward(self, masks: Tensor, disparity: Tensor) -> Tensor:
        """Encode masks (B, C, h, w) and disparity (B, h, w) in 0..1 as (B, output_dim)."""
        with torch.no_grad():
            # 1. masks beside disparity: (B, C + 1, h, w)
            maps = torch.cat([masks, disparity[:, None]], dim=1)
            # 2. average over blocks: (B, C + 1, 21, 21)
            coarse = resize_area(maps, (_COARSE, _COARSE))
        # 3. convolve: (B, output_dim)
        return self.net(coarse)


class RGBEncoder(nn.Module):
    """Encode RGB images, resized to `side` pixels: the same kind of convolutions, more of them."""

    def __init__(self, side: int, channels: int):
        super().__init__()
        self.side = side
        self.net, self.output_dim = _convolutions(3, channels, side)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, h, w) in 0..1 as (B, output_dim)."""
        return self.net(resize_area(images, (self.side, self.side)) - 0.5)


def _convolutions(in_channels: int, channels: int, side: int) -> tuple[nn.Sequential, int]:
    """Build convolutions that halve a square map until its side is 6 or less; return the output width too."""
    layers: list[nn.Module] = []
    width = channels
    while side > _SMALLEST:
        layers += [nn.Conv2d(in_channels, width, 3, stride=2, padding=1), nn.SiLU()]
        in_channels, width, side = width, 2 * channels, (side + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(in_channels * side**2, 4 * channels)), 4 * channels
