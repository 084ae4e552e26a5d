# SPDX-License-Identifier: Apache-2.0
"""`so101-cache-vision`: add the features of the frozen encoder to a dataset, once for all training steps.

The source is not changed. The new dataset has all columns of the source and `observation.vision.<camera>`;
`--drop_rgb=true` leaves the images out, which training would decode and not use. The command can be stopped
at any time: the same command resumes.

    so101-cache-vision --root=outputs/demos --output=outputs/demos_precomputed --drop_rgb=true
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lerobot_processor_so101.precompute.columns import VECTOR, Column
from lerobot_processor_so101.precompute.command import run_job
from lerobot_processor_so101.precompute.config import FeatureExtractor, JobConfig

from .configuration_imf import SIGLIP2, vision_key


@dataclass
class CacheVisionConfig(JobConfig):
    """Options of `so101-cache-vision`; see also `JobConfig`.

    Args:
        vision_model_name: folder or Hub id of the encoder, as in the policy.
        vision_grid: 0 for the encoder's pooled output, g for the means of g x g cells of its patches; as
            in the policy.
    """

    command: ClassVar[str] = "so101-cache-vision"

    vision_model_name: str = SIGLIP2
    vision_grid: int = 0

    def make_extractor(self, rank: int) -> FeatureExtractor:
        """Load the encoder; see `JobConfig.make_extractor`."""
        return VisionExtractor(self, rank)


class VisionExtractor(FeatureExtractor):
    """The encoder of a policy that is built from scratch, for one worker."""

    def __init__(self, config: CacheVisionConfig, rank: int) -> None:
        from .vision import VisionEncoder

        super().__init__(config.device, config.batch_size, rank)
        self.encoder = VisionEncoder(config.vision_model_name, config.vision_grid).to(self.device)
        self.identity = self.encoder.identity(config.vision_model_name)
        self.grid = max(1, config.vision_grid)

    def columns(self, sizes: Mapping[str, tuple[int, int]]) -> list[Column]:
        """Return one vector per camera; see `FeatureExtractor.columns`."""
        shape, grid = (self.encoder.output_dim,), (self.grid, self.grid)
        return [
            Column(vision_key(camera), camera, VECTOR, grid, shape, self.identity, size)
            for camera, size in sizes.items()
        ]

    def extract(self, images: Mapping[str, Tensor], columns: Sequence[Column]) -> dict[str, Tensor]:
        """Encode one batch of all cameras; see `FeatureExtractor.extract`."""
        features = self.encoder([frames.to(self.device) for frames in images.values()])  # (B, V, D)
        if not bool(torch.isfinite(features).all()):
            raise ValueError("found NaN or infinite features; the encoder's weights are damaged.")
        views = zip(images, features.unbind(1), strict=True)
        return {vision_key(camera): view.cpu() for camera, view in views}


def main() -> None:
    """Run `so101-cache-vision`."""
    run_job(CacheVisionConfig)


if __name__ == "__main__":
    main()
