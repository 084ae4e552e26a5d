# SPDX-License-Identifier: Apache-2.0
"""Depth from single pictures: depth estimation models from transformers.

Licences of the weights: Depth-Anything-V2-Small is Apache-2.0; Base and Large are CC-BY-NC-4.0, not for commercial
use. Look at a model's card before you use another one.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForDepthEstimation, BatchFeature, PretrainedConfig, PreTrainedModel

from .disparity import inverse_to_disparity
from .perception_model import (
    PerceptionModel,
    Region,
    cut_region,
    in_batches,
    load_config,
    load_model,
    load_processor,
)

__all__ = ["DEPTH_ANYTHING", "DepthEstimator", "inverse_to_disparity", "make_depth_estimator"]

DEPTH_ANYTHING = "depth-anything/Depth-Anything-V2-Small-hf"
NEAREST = 1e-3  # metres; nothing is nearer to a lens

Quantity = Literal["inverse", "depth"]


class DepthEstimator(PerceptionModel):
    """Pictures in, inverse depth out.

    Args:
        name: Hub id or folder, for messages and the identity.
        model: the model.
        processor: its image processor.

    Raises:
        ValueError: a model whose answer is of unknown meaning.
    """

    def __init__(self, name: str, model: PreTrainedModel, processor: Any) -> None:
        self.quantity = predicted_quantity(name, model.config)
        super().__init__(name, model, processor)

    def forward(self, images: Tensor) -> Tensor:
        """Estimate one batch, (B, 3, H, W) in [0, 1]."""
        return self.estimate([images])[0]

    @torch.no_grad()
    def estimate(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Estimate several batches, such as one per camera, in one call of the model where sizes allow.

        Args:
            batches: (B, 3, H, W) each, in [0, 1].

        Returns:
            Inverse depth per batch, (B, h, w) float32 on the model's grid: larger is nearer, scale and offset are
            arbitrary and differ between pictures. See `inverse_to_disparity`.

        Raises:
            ValueError: pictures of another shape, dtype or range, or with NaN.
        """
        inputs = [self.prepare(images) for images in batches]
        answers = in_batches(self.inverse_depth, lambda maps, start, end: maps[start:end], inputs)
        return [
            cut_region(maps[:, None], self.picture_region(prepared, (images.shape[-2], images.shape[-1])))[
                :, 0
            ]
            for maps, prepared, images in zip(answers, inputs, batches, strict=True)
        ]

    def inverse_depth(self, inputs: BatchFeature) -> Tensor:
        """Run the model on prepared pictures, (B, h, w) float32."""
        predicted = self.model(pixel_values=inputs["pixel_values"]).predicted_depth.float()
        return predicted if self.quantity == "inverse" else predicted.clamp(min=NEAREST).reciprocal()


class BorderedDepthEstimator(DepthEstimator):
    """ZoeDepth: pictures are prepared with a mirrored border, which is cut off again."""

    switched_off = ()

    def picture_region(self, inputs: BatchFeature, size: tuple[int, int]) -> Region:
        """The picture without its border, which the image processor does not tell."""
        if not self.processor.do_pad:
            return super().picture_region(inputs, size)
        borders = [int(np.sqrt(side / 2) * 3) for side in size]
        shares = [side / (side + 2 * border) for side, border in zip(size, borders, strict=True)]
        return (1 - shares[0]) / 2, (1 - shares[1]) / 2, shares[0], shares[1]


def predicted_quantity(name: str, config: PretrainedConfig) -> Quantity:
    """What a model predicts: inverse depth of some scale and offset, or depth.

    Raises:
        ValueError: unknown, or dependent on the other pictures of a batch.
    """
    kind = config.model_type
    if kind == "depth_anything":
        return "depth" if config.depth_estimation_type == "metric" else "inverse"
    if kind == "depth_pro":  # its post-processing turns it over, after this
        return "inverse"
    if (
        kind == "dpt" and not config.add_projection
    ):  # with it are DINOv2's, which predict metres and need padding
        return "inverse"
    if kind == "zoedepth" and len(config.bin_configurations) > 1:
        raise ValueError(
            f"depth model {name!r}: a ZoeDepth with {len(config.bin_configurations)} heads lets the pictures of a "
            "batch vote for one, so that an answer depends on the other pictures. Take one with a single head."
        )
    if kind in ("zoedepth", "glpn"):
        return "depth"
    raise ValueError(
        f"depth model {name!r}: found a {kind!r} model, expected one of depth_anything, depth_pro, "
        "dpt (of MiDaS), glpn, zoedepth."
    )


def make_depth_estimator(name: str = DEPTH_ANYTHING) -> DepthEstimator:
    """Load a depth model, on the CPU; it follows its pictures to their device.

    Args:
        name: a Hub id or folder of a depth estimation model of transformers. The default's weights are Apache-2.0;
            those of the larger Depth-Anything models are not for commercial use.

    Raises:
        ValueError: no such model, or one that does not estimate depth.
    """
    config = load_config(name)
    predicted_quantity(name, config)  # before a download of weights
    estimator = BorderedDepthEstimator if config.model_type == "zoedepth" else DepthEstimator
    return estimator(name, load_model(name, AutoModelForDepthEstimation), load_processor(name))
