# SPDX-License-Identifier: Apache-2.0
"""The file of `so101-laq-label`: latent actions of a dataset, by `index` of the frame.

LeRobot's training drops columns that it does not know, so labels are not stored in the dataset. The file
names its dataset and its model.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.datasets.io_utils import load_nested_dataset
from lerobot.datasets.utils import EPISODES_DIR
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lerobot_processor_so101.atomic import atomic_path

_FORMAT = "1"
_STATE_MEAN = "stats/observation.state/mean"


@dataclass
class LatentLabels:
    """Latent actions of all frames of a dataset.

    Attributes:
        codes: (N, S), by index of the frame.
        vectors: (N, S, D), of mean 0 and standard deviation 1.
        valid: (N,), false where the later frame is beyond the end of the episode.
        dataset: fingerprint of the dataset; see `dataset_fingerprint`.
        laq: identity of the model; see `HLRPLAQPolicy.describe`.
    """

    codes: Tensor
    vectors: Tensor
    valid: Tensor
    dataset: str
    laq: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        tensors = {
            "codes": self.codes.to(torch.int32).contiguous(),
            "vectors": self.vectors.float().contiguous(),
            "valid": self.valid.to(torch.uint8).contiguous(),
        }
        metadata = {"format": _FORMAT, "dataset": self.dataset, "laq": json.dumps(self.laq)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata)

    @classmethod
    def load(cls, path: Path) -> "LatentLabels":
        """Read the file.

        Raises:
            ValueError: if it is missing or has another format.
        """
        if not path.is_file():
            raise ValueError(f"latent_labels: found no file {str(path)!r}; write it with `so101-laq-label`.")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(
                    f"latent_labels: found format {metadata.get('format')!r} in {str(path)!r}, expected "
                    f"{_FORMAT}, which `so101-laq-label` writes."
                )
            codes, vectors, valid = (file.get_tensor(key) for key in ("codes", "vectors", "valid"))
        return cls(codes.long(), vectors, valid.bool(), metadata["dataset"], json.loads(metadata["laq"]))

    def check(self, dataset: LeRobotDatasetMetadata) -> None:
        """Check that a dataset is the labelled one.

        Raises:
            ValueError: if it is another.
        """
        if self.dataset != dataset_fingerprint(dataset):
            raise ValueError(
                f"latent_labels: found labels of {len(self.codes)} frames of another dataset, expected those "
                f"of this one ({dataset.total_frames} frames). Episodes were added, removed or reordered, or "
                "the file belongs to another dataset: run `so101-laq-label` again."
            )


def dataset_fingerprint(dataset: LeRobotDatasetMetadata) -> str:
    """Return the SHA-256 of the rate, the lengths of the episodes and the means of their states.

    A copy without RGB, as `--drop_rgb=true` makes it, has the same fingerprint.
    """
    digest = hashlib.sha256(f"{dataset.fps} {dataset.total_frames}".encode())
    if dataset.episodes is not None:
        episodes = load_nested_dataset(dataset.root / EPISODES_DIR)  # unlike the metadata with statistics
        digest.update(np.asarray(episodes["length"], np.int64).tobytes())
        if _STATE_MEAN in episodes.column_names:
            digest.update(np.asarray(episodes[_STATE_MEAN], np.float64).tobytes())
    return digest.hexdigest()
