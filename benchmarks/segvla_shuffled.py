# SPDX-License-Identifier: Apache-2.0
"""LeRobot's commands with the masks of other moments: the arm of `benchmarks.segvla_helps` whose cues tell nothing.

    python -m benchmarks.segvla_shuffled train|eval DATASET [options of the command]

Every mask that segvla is given, in training and in evaluation, is replaced by that of the same camera at a random
frame of the dataset. What stays is what masks look like; what goes is that they belong to the picture.
"""

import sys

import torch
from lerobot.datasets import LeRobotDataset
from lerobot.scripts import lerobot_eval, lerobot_train
from torch import Tensor

from lerobot_policy_segvla import SegVLAAddSegmentationStep
from lerobot_processor_so101.stored import decode_ids


def masks_of(root: str) -> dict[str, Tensor]:
    """(N, H, W) ids of each camera's masks, by key."""
    dataset = LeRobotDataset("local/few", root=root)
    keys = [key for key in dataset.features if key.endswith("_seg")]
    rows = dataset.hf_dataset.select_columns(keys)
    return {key: torch.stack([decode_ids(row[key]) for row in rows]) for key in keys}


def main() -> None:
    _, command, root, *options = sys.argv
    masks = masks_of(root)
    generator = torch.Generator().manual_seed(0)
    real = SegVLAAddSegmentationStep.from_observed

    def from_observed(self: SegVLAAddSegmentationStep, plane: Tensor, key: str) -> Tensor:
        count = plane[..., 0, 0, 0].numel()
        other = masks[key][torch.randint(len(masks[key]), (count,), generator=generator)]
        return real(self, other.reshape(plane.shape).to(plane), key)

    # A patch and not a subclass: a saved pipeline names the step, and stock commands rebuild it by that name.
    SegVLAAddSegmentationStep.from_observed = from_observed  # type: ignore[method-assign]
    sys.argv = [f"lerobot-{command}", *options]
    {"train": lerobot_train, "eval": lerobot_eval}[command].main()


if __name__ == "__main__":
    main()
