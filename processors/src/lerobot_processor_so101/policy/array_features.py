# SPDX-License-Identifier: Apache-2.0
"""Features of a dataset whose values are in memory-mapped arrays beside it.

A dataset of `so101-arrays` has a column of row numbers under the feature's own key, so that LeRobot reads
stacks of frames, padding and subsets of episodes as usual. The values are in `arrays/<key>.npy`, and
`DatasetLookupProcessorStep` replaces row numbers by values. `info["array"]` is the shape of a value.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets import LeRobotDatasetMetadata


def array_path(root: Path, key: str) -> Path:
    """Return the file with the values of a feature."""
    return root / "arrays" / f"{key}.npy"


def array_feature(feature: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return a feature as LeRobot's `info.json` describes it, stored as an array of values of a shape."""
    info = feature.get("info") or {}
    # Without LeRobot's marks of a depth map, which would have to be an image or a video.
    kept = {key: value for key, value in info.items() if not key.startswith(("video.", "is_depth", "depth_"))}
    return {"dtype": "int64", "shape": [1], "names": None, "info": {**kept, "array": list(shape)}}


def policy_features(features: dict[str, dict]) -> dict[str, PolicyFeature]:
    """Return the features that are stored as arrays, with the shape that a policy gets."""
    shapes = {key: (feature.get("info") or {}).get("array") for key, feature in features.items()}
    return {
        key: PolicyFeature(FeatureType.VISUAL if len(shape) == 3 else FeatureType.STATE, tuple(shape))
        for key, shape in shapes.items()
        if shape
    }


class ArrayReader:
    """Read the arrays of a dataset; rows that are not read use no memory.

    Raises:
        ValueError: if a file is missing or has another shape than declared.
    """

    def __init__(self, meta: LeRobotDatasetMetadata) -> None:
        declared = policy_features(meta.features)
        self._arrays = {key: _open(meta.root, key, feature.shape) for key, feature in declared.items()}

    def read(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Replace row numbers, (B,) or (B, T), by their values as float32, (B, …) or (B, T, …)."""
        result = dict(observation)
        for key in self._arrays.keys() & observation.keys():
            rows = observation[key]
            values = self._arrays[key][rows.cpu().numpy()].astype(np.float32)
            result[key] = torch.from_numpy(values).to(rows.device)
        return result


def _open(root: Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    path = array_path(root, key)
    if not path.is_file():
        raise ValueError(
            f"{key}: found no {path}, expected its values. Datasets of `so101-arrays` cannot be edited or "
            "merged; do this with their source, and give `so101-arrays` again."
        )
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape[1:] != shape:
        raise ValueError(f"{path}: found values of shape {array.shape[1:]}, expected {shape}.")
    return array
