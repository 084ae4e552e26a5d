# SPDX-License-Identifier: Apache-2.0
"""Latent actions of a dataset in a file beside it, found by the `index` of a frame.

LeRobot's training drops columns that it does not know, so labels do not travel in the dataset. The file says which dataset
it belongs to and which model made it.
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

_FORMAT = 1
_STATE_MEAN = "stats/observation.state/mean"


@dataclass
class LatentLabels:
    """Latent actions of all frames of a dataset.

    Attributes:
        codes: (N, S), by index of the frame.
        vectors: (N, S, D), of mean 0 and standard deviation 1.
        valid: (N,), false where the later frame is beyond the end of the episode.
        dataset: fingerprint of the dataset; see `dataset_fingerprint`.
        laq: what the model is; see `HLRPLAQPolicy.describe`.
    """

    codes: Tensor
    vectors: Tensor
    valid: Tensor
    dataset: str
    laq: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        tensors = {
            "codes": self.codes.to(torch.int32),
            "vectors": self.vectors.float(),
            "valid": self.valid.to(torch.uint8),
        }
        metadata = {"format": str(_FORMAT), "dataset": self.dataset, "laq": json.dumps(self.laq)}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial, metadata)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "LatentLabels":
        """Read the file.

        Raises:
            ValueError: there is none, or it is of another kind.
        """
        if not path.is_file():
            raise ValueError(f"latent_labels: found no file {str(path)!r}; write it with `so101-laq-label`.")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != str(_FORMAT):
                raise ValueError(
                    f"latent_labels: found format {metadata.get('format')!r} in {str(path)!r}, expected {_FORMAT}, which "
                    "`so101-laq-label` writes."
                )
            codes, vectors, valid = (file.get_tensor(key) for key in ("codes", "vectors", "valid"))
        return cls(codes.long(), vectors, valid.bool(), metadata["dataset"], json.loads(metadata["laq"]))

    def check(self, dataset: LeRobotDatasetMetadata) -> None:
        """Refuse another dataset than the labelled one.

        Raises:
            ValueError: it is another.
        """
        if self.dataset != dataset_fingerprint(dataset):
            raise ValueError(
                f"latent_labels: found labels of {len(self.codes)} frames of another dataset, expected those of this one "
                f"({dataset.total_frames} frames). Episodes were added, removed or reordered, or the file is another's: "
                "run `so101-laq-label` again."
            )


def dataset_fingerprint(dataset: LeRobotDatasetMetadata) -> str:
    """SHA-256 of rate, lengths of the episodes and means of their states.

    A copy without pictures, as `--drop_rgb=true` makes it, is the same dataset.
    """
    digest = hashlib.sha256(f"{dataset.fps} {dataset.total_frames}".encode())
    if dataset.episodes is not None:
        episodes = load_nested_dataset(dataset.root / EPISODES_DIR)  # the metadata leaves statistics out
        digest.update(np.asarray(episodes["length"], np.int64).tobytes())
        if _STATE_MEAN in episodes.column_names:
            digest.update(np.asarray(episodes[_STATE_MEAN], np.float64).tobytes())
    return digest.hexdigest()
