# SPDX-License-Identifier: Apache-2.0
"""`so101-cache-vision`: write down what the frozen encoder sees in a dataset, once, instead of at every training step.

The source is left as it is. The new dataset has all that the source has and `observation.vision.<camera>` beside it;
with `--drop_rgb=true` without the pictures, which training would decode and not use. It may be stopped at any moment:
the same command goes on where it was.

    so101-cache-vision --root=outputs/demos --output=outputs/demos_seen --drop_rgb=true
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lerobot_processor_so101.precompute.columns import VECTOR, Column
from lerobot_processor_so101.precompute.command import run_command
from lerobot_processor_so101.precompute.config import JobConfig
from lerobot_processor_so101.precompute.models import Models

from .configuration_imf import SIGLIP2, vision_key


@dataclass
class CacheVisionConfig(JobConfig):
    """Options of `so101-cache-vision`; see also `JobConfig`.

    Args:
        vision_model_name: folder or Hub id of the encoder, as the policy's option.
        vision_grid: as the policy's option.
    """

    command: ClassVar[str] = "so101-cache-vision"

    vision_model_name: str = SIGLIP2
    vision_grid: int = 0

    def make_models(self, rank: int) -> Models:
        """Load the encoder; see `JobConfig.make_models`."""
        return VisionModels(self, rank)


class VisionModels(Models):
    """The encoder, as a policy that is built from scratch has it.

    Args:
        config: which one.
        rank: number of this worker.
    """

    def __init__(self, config: CacheVisionConfig, rank: int) -> None:
        from .vision import VisionEncoder

        super().__init__(config.device, config.batch_size, rank)
        self.encoder = VisionEncoder.make(config.vision_model_name, config.vision_grid, None).to(self.device)
        self.identity = self.encoder.identity(config.vision_model_name)
        self.grid = max(1, config.vision_grid)

    def columns(self, pictures: Mapping[str, tuple[int, int]]) -> list[Column]:
        """One vector per camera; see `Models.columns`."""
        shape, size = (self.encoder.output_dim,), (self.grid, self.grid)
        return [
            Column(vision_key(camera), camera, VECTOR, size, shape, self.identity, picture)
            for camera, picture in pictures.items()
        ]

    def perceive(self, pictures: Mapping[str, Tensor], columns: Sequence[Column]) -> dict[str, Tensor]:
        """Look at one batch of all cameras; see `Models.perceive`."""
        seen = self.encoder([frames.to(self.device) for frames in pictures.values()])  # (B, V, D)
        if not bool(torch.isfinite(seen).all()):
            raise ValueError("found NaN or infinite features; the encoder's weights are damaged.")
        return {vision_key(camera): view.cpu() for camera, view in zip(pictures, seen.unbind(1), strict=True)}


def main() -> None:
    """The console script."""
    run_command(CacheVisionConfig)


if __name__ == "__main__":
    main()
