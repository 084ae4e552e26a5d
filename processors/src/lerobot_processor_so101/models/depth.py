# SPDX-License-Identifier: Apache-2.0
"""Monocular depth: depth estimation models from transformers.

Licences of the weights: Depth-Anything-V2-Small is Apache-2.0; Base and Large are CC-BY-NC-4.0, not for
commercial use. Read a model's card before you use another one.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForDepthEstimation, BatchFeature, PretrainedConfig

from ..perception.disparity import inverse_to_disparity
from .base import PerceptionModel, Region, crop_interpolated, load_config, load_pretrained, run_batched

__all__ = ["DEPTH_ANYTHING", "DepthEstimator", "inverse_to_disparity", "make_depth_estimator"]

DEPTH_ANYTHING = "depth-anything/Depth-Anything-V2-Small-hf"
MIN_DEPTH = 1e-3  # m

Quantity = Literal["inverse", "depth"]


class DepthEstimator(PerceptionModel):
    """Computes inverse depth of images."""

    @property
    def quantity(self) -> Quantity:
        """What the model predicts."""
        return predicted_quantity(self.name, self.model.config)

    def forward(self, images: Tensor) -> Tensor:
        """Estimate one batch, (B, 3, H, W) in [0, 1]."""
        return self.estimate([images])[0]

    @torch.no_grad()
    def estimate(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Estimate several batches, such as one per camera, in one model call where their sizes allow.

        Args:
            batches: (B, 3, H, W) each, in [0, 1].

        Returns:
            Inverse depth per batch, (B, h, w) float32 on the model's grid: larger is nearer, scale and offset
            are arbitrary and differ between images. See `inverse_to_disparity`.

        Raises:
            ValueError: as `check_images`.
        """
        inputs = [self.prepare(images) for images in batches]
        outputs = run_batched(self.inverse_depth, lambda maps, start, end: maps[start:end], inputs)
        return [
            crop_interpolated(maps[:, None], self.image_region(prepared, images.shape[-2:]))[:, 0]
            for maps, prepared, images in zip(outputs, inputs, batches, strict=True)
        ]

    def inverse_depth(self, inputs: BatchFeature) -> Tensor:
        """Run the model on prepared images, (B, h, w) float32."""
        predicted = self.model(pixel_values=inputs["pixel_values"]).predicted_depth.float()
        return predicted if self.quantity == "inverse" else predicted.clamp(min=MIN_DEPTH).reciprocal()


class BorderedDepthEstimator(DepthEstimator):
    """ZoeDepth: its image processor adds a mirrored border, which is cropped from the output."""

    disabled = ()

    def image_region(self, inputs: BatchFeature, size: torch.Size) -> Region:
        """Return the image without its border; computed, since the image processor does not return it."""
        if not self.processor.do_pad:
            return super().image_region(inputs, size)
        borders = [int(np.sqrt(side / 2) * 3) for side in size]
        shares = [side / (side + 2 * border) for side, border in zip(size, borders, strict=True)]
        return (1 - shares[0]) / 2, (1 - shares[1]) / 2, shares[0], shares[1]


def predicted_quantity(name: str, config: PretrainedConfig) -> Quantity:
    """Return what a model predicts: inverse depth of some scale and offset, or depth.

    Raises:
        ValueError: if that is unknown, or depends on the other images of a batch.
    """
    kind = config.model_type
    if kind == "depth_anything":
        return "depth" if config.depth_estimation_type == "metric" else "inverse"
    if kind == "depth_pro":  # only its post-processing inverts it
        return "inverse"
    # With a projection these are DINOv2's models, which predict metres and need padding.
    if kind == "dpt" and not config.add_projection:
        return "inverse"
    if kind == "zoedepth" and len(config.bin_configurations) > 1:
        raise ValueError(
            f"depth model {name!r}: a ZoeDepth with {len(config.bin_configurations)} heads selects one by a "
            "majority of the batch, so an output depends on the other images. Use one with one head."
        )
    if kind in ("zoedepth", "glpn"):
        return "depth"
    raise ValueError(
        f"depth model {name!r}: found a {kind!r} model, expected one of depth_anything, depth_pro, "
        "dpt (of MiDaS), glpn, zoedepth."
    )


def make_depth_estimator(name: str = DEPTH_ANYTHING) -> DepthEstimator:
    """Load a depth model, a Hub id or folder, on the CPU; it moves to the device of its images.

    Raises:
        ValueError: if there is no such model, or it does not estimate depth.
    """
    config = load_config(name)
    predicted_quantity(name, config)  # before weights are downloaded
    estimator = BorderedDepthEstimator if config.model_type == "zoedepth" else DepthEstimator
    return estimator(name, *load_pretrained(name, AutoModelForDepthEstimation))
