# SPDX-License-Identifier: Apache-2.0
"""segvla beside SmolVLA at the real size: a chunk of actions, a training step, peak memory.

    python -m benchmarks.segvla_latency

As `benchmarks.smolvla_costs` says, with class ids at 84x84 in the batch: what a segmenter costs is in perception.json. On two
cores about 20 minutes and 15 GB.
"""

from typing import Any

import torch

from lerobot_policy_segvla import SegVLAConfig
from lerobot_policy_segvla.configuration_segvla import INJECTIONS
from lerobot_policy_segvla.modeling_segvla import SegVLAPolicy

from .smolvla_costs import CAMERAS, Batch, Costs

CLASSES = ["background", "table", "red cube", "green cube", "blue bowl", "white bowl"]


def make_policy(arm: str, options: dict[str, Any]) -> SegVLAPolicy:
    """segvla with one of its injections."""
    config = SegVLAConfig(
        **options,
        segmentation_feature_map={
            f"observation.images.{camera}": f"observation.seg.{camera}" for camera in CAMERAS
        },
        segmentation_class_names=CLASSES,
        segmentation_task_classes=["red cube", "blue bowl"],
        segmentation_geometry_classes=["red cube", "blue bowl"],
        segmentation_injection=arm,
    )
    return SegVLAPolicy(config)


def masks(size: int) -> Batch:
    """Class ids of all cameras."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, len(CLASSES), (size, 6, 6), generator=generator, dtype=torch.uint8)
    ids = blocks.repeat_interleave(14, 1).repeat_interleave(14, 2)
    return {f"observation.seg.{camera}": ids for camera in CAMERAS}


if __name__ == "__main__":
    Costs("segvla_latency", INJECTIONS, make_policy, masks).main(__doc__)
