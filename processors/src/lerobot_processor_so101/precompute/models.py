# SPDX-License-Identifier: Apache-2.0
"""What a command that looks at every frame of a dataset needs of the models that look."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from lerobot.utils.device_utils import auto_select_torch_device
from torch import Tensor

from .columns import Column


class Models(ABC):
    """The models of one worker.

    Args:
        device: cpu, cuda, mps, or auto.
        batch_size: frames of each camera per call; 0 is 4 on a CPU and 32 elsewhere.
        rank: number of this worker; several workers on one machine take turns at its GPUs.
    """

    def __init__(self, device: str, batch_size: int, rank: int) -> None:
        self.device = _device(device, rank)
        self.batch_size = batch_size or (4 if self.device.type == "cpu" else 32)

    @abstractmethod
    def columns(self, pictures: Mapping[str, tuple[int, int]]) -> list[Column]:
        """What is stored.

        Args:
            pictures: their sizes (h, w), by camera.
        """

    @abstractmethod
    def perceive(self, pictures: Mapping[str, Tensor], columns: Sequence[Column]) -> dict[str, Tensor]:
        """Look at one batch of all cameras.

        Args:
            pictures: (B, 3, H, W) in [0, 1], by camera.
            columns: what is stored.

        Returns:
            By key, on the CPU: (B, 1, h, w) int32, (B, C, h, w) float16 for logits, or (B, D) float32 for vectors.

        Raises:
            ValueError: pictures or answers with NaN.
        """


def _device(name: str, rank: int) -> torch.device:
    device = auto_select_torch_device() if name == "auto" else torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", rank % torch.cuda.device_count())
    return device
