# SPDX-License-Identifier: Apache-2.0
"""Interface of the models that compute new columns from the frames of a dataset."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from lerobot.utils.device_utils import auto_select_torch_device
from torch import Tensor

from .columns import Column


class FeatureExtractor(ABC):
    """The models of one worker.

    Args:
        device: cpu, cuda, mps, or auto.
        batch_size: frames of each camera per model call; 0 is 4 on a CPU and 32 elsewhere.
        rank: index of this worker; the workers of one machine are spread over its GPUs.
    """

    def __init__(self, device: str, batch_size: int, rank: int) -> None:
        self.device = auto_select_torch_device() if device == "auto" else torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", rank % torch.cuda.device_count())
        self.batch_size = batch_size or (4 if self.device.type == "cpu" else 32)

    @abstractmethod
    def columns(self, image_sizes: Mapping[str, tuple[int, int]]) -> list[Column]:
        """Return the columns to store.

        Args:
            image_sizes: (h, w) of the images, by camera.
        """

    @abstractmethod
    def extract(self, images: Mapping[str, Tensor], columns: Sequence[Column]) -> dict[str, Tensor]:
        """Compute the values of one batch of all cameras.

        Args:
            images: (B, 3, H, W) in [0, 1], by camera.
            columns: the columns to store.

        Returns:
            By key, on the CPU: (B, 1, h, w) int32, logits (B, C, h, w) float16, or vectors (B, D) float32.

        Raises:
            ValueError: if images or model outputs contain NaN.
        """
