# SPDX-License-Identifier: Apache-2.0
"""The processor step that looks up in the training dataset what the loader would read slowly."""

from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import ProcessorStep, ProcessorStepRegistry
from lerobot.utils.constants import ACTION
from torch import Tensor

from ..policy.action_table import ActionTable
from ..policy.array_features import ArrayReader
from ..policy.training_dataset import loaded_policy, training_dataset

DATASET_LOOKUP = "so101_dataset_lookup"
IS_PAD = f"{ACTION}_is_pad"


@ProcessorStepRegistry.register(DATASET_LOOKUP)
class DatasetLookupProcessorStep(ProcessorStep):
    """In training, replace the action of each sample by its chunk, and row numbers of arrays by their values.

    The result equals that of LeRobot's loader, `action_is_pad` included. For a chunk, the loader would decode
    the images of all its frames; this step reads the actions of the whole dataset once, without images.
    Observations without `index`, as in inference, single items, and chunks from the loader are left as they
    are; so is everything if the dataset is unknown.

    A checkpoint contains no option of this step: dataset and chunk are those of the training that loads it.

    Args:
        config: configuration of the policy, with `chunk_delta_indices`; by default that of the checkpoint
            that is being loaded.
        dataset: by default the one that LeRobot builds the policy for.
    """

    def __init__(self, config: Any = None, dataset: LeRobotDatasetMetadata | None = None) -> None:
        self._config: Any = loaded_policy() if config is None else config
        self._dataset = dataset
        self._arrays: ArrayReader | None = None
        self._actions: ActionTable | None = None

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Process one transition.

        Raises:
            ValueError: if files of the training dataset are missing, or the batch is from another dataset.
        """
        extra = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        dataset = training_dataset(self._config, self._dataset)
        index = extra.get("index")
        if index is None or index.ndim == 0 or dataset is None:
            return transition
        result = transition.copy()
        observation = transition.get(TransitionKey.OBSERVATION)
        if observation is not None:
            self._arrays = self._arrays or ArrayReader(dataset)
            result[TransitionKey.OBSERVATION] = self._arrays.read(observation)
        action = transition.get(TransitionKey.ACTION)
        if isinstance(action, Tensor) and IS_PAD not in extra:
            if self._actions is None:
                self._actions = ActionTable(dataset)
                known = self._actions.at(index).to(action)
                if known.shape != action.shape or not torch.allclose(known, action, equal_nan=True):
                    raise ValueError(
                        f"{ACTION}: the batch differs from the rows of the training dataset with the same "
                        "`index`. Build policy and pipelines for the dataset that is loaded."
                    )
            deltas = self._config.chunk_delta_indices
            chunk, is_pad = self._actions.chunks(index, extra["episode_index"], deltas)
            result[TransitionKey.ACTION] = chunk.to(action.dtype)
            result[TransitionKey.COMPLEMENTARY_DATA] = {**extra, IS_PAD: is_pad}
        return result

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        return features  # they describe one action
