# SPDX-License-Identifier: Apache-2.0
"""LeRobot's commands with masks of unrelated frames: a variant of `learning.segvla`.

    python -m benchmarks.learning.segvla_shuffled train|eval DATASET [options of the command]

Every mask that segvla reads, in training and in evaluation, is replaced by that of the same camera at a
random frame of the dataset, so that masks keep their statistics and lose their relation to the image.
"""

import sys

import torch
from lerobot.datasets import LeRobotDataset
from lerobot.scripts import lerobot_eval, lerobot_train
from torch import Tensor

from lerobot_processor_so101.perception.stored import decode_ids
from lerobot_processor_so101.steps.segmentation import IdReader


def masks_of(root: str) -> dict[str, Tensor]:
    """Return the ids of each camera's masks by key, (N, H, W)."""
    dataset = LeRobotDataset("local/few", root=root)
    keys = [key for key in dataset.features if key.endswith("_seg")]
    rows = dataset.hf_dataset.select_columns(keys)
    return {key: torch.stack([decode_ids(row[key]) for row in rows]) for key in keys}


def main() -> None:
    _, command, root, *options = sys.argv
    masks = masks_of(root)
    generator = torch.Generator().manual_seed(0)
    read = IdReader.__call__

    def read_other(self: IdReader, observation: dict[str, Tensor], key: str) -> Tensor:
        plane = observation[key]
        count = plane[..., 0, 0, 0].numel()
        other = masks[key][torch.randint(len(masks[key]), (count,), generator=generator)]
        return read(self, {key: other.reshape(plane.shape).to(plane)}, key)

    # A patch and not a subclass: a saved pipeline names the step, and stock commands rebuild it by that name.
    IdReader.__call__ = read_other  # type: ignore[method-assign]
    sys.argv = [f"lerobot-{command}", *options]
    {"train": lerobot_train, "eval": lerobot_eval}[command].main()


if __name__ == "__main__":
    main()
