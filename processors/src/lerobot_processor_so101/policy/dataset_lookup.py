# SPDX-License-Identifier: Apache-2.0
"""Let a preprocessor step look up in the dataset what LeRobot's loader would read slowly.

LeRobot's loader reads whole rows for a chunk: for 50 actions it decodes the images of 50 frames. A policy
whose configuration has this mixin gets one action per sample from the loader, and the step replaces it.
"""

import json
from pathlib import Path

from lerobot.configs import PolicyFeature
from torch import Tensor

from ..steps.dataset_lookup import DATASET_LOOKUP
from .array_features import policy_features
from .checkpoint import checkpoint_folder


class DatasetLookupMixin:
    """Configuration of a policy that predicts action chunks; for a `PreTrainedConfig`, before it."""

    chunk_size: int
    input_features: dict[str, PolicyFeature] | None
    pretrained_path: Path | None
    pretrained_revision: str | None

    @property
    def chunk_delta_indices(self) -> list[int]:
        """Control periods of a chunk's actions, relative to the current observation."""
        return list(range(self.chunk_size))

    @property
    def action_delta_indices(self) -> list[int] | None:
        """What LeRobot's loader reads: None for one action per sample.

        A training that starts from a checkpoint uses its pipeline. If that lacks the step, because an older
        version or another policy saved it, the loader reads chunks.
        """
        if not self.pretrained_path:
            return None
        folder = checkpoint_folder(str(self.pretrained_path), self.pretrained_revision)
        steps = json.loads((folder / "policy_preprocessor.json").read_text())["steps"]
        has_step = any(step.get("registry_name") == DATASET_LOOKUP for step in steps)
        return None if has_step else self.chunk_delta_indices

    def check_chunk(self, action: Tensor) -> None:
        """Check that a training batch has chunks, (B, T, A).

        Raises:
            ValueError: if it has one action per sample.
        """
        if action.ndim < 3:
            raise ValueError(
                f"action: found one action per sample, shape {tuple(action.shape)}, expected chunks. The "
                "preprocessor looks them up if it knows the dataset: build the policy with "
                "`make_policy(config, ds_meta=...)`, or pass `dataset_meta` to the factory of its pipelines. "
                "Or read chunks: `LeRobotDataset(..., delta_timestamps={'action': ...})`."
            )

    def set_dataset_feature_metadata(self, features: dict[str, dict]) -> None:
        """Correct the features that the dataset stores as arrays. LeRobot calls this in training."""
        inputs = self.input_features or {}
        inputs.update({key: feature for key, feature in policy_features(features).items() if key in inputs})
