# SPDX-License-Identifier: Apache-2.0
"""The processor steps for class names and for the roles of objects in the task sentence."""

from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import (
    ObservationProcessorStep,
    ProcessorStepRegistry,
    RobotObservation,
    TransitionKey,
)
from torch import Tensor

from ..perception.keys import CLASS_NAMES_KEY, WATCHED
from ..perception.roles import Roles


@dataclass
class _WithoutFeatures(ObservationProcessorStep):
    """A step that changes no feature that a policy learns from."""

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return asdict(self)

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Return the features unchanged."""
        return features


@ProcessorStepRegistry.register("so101_tell_class_names")
@dataclass
class AddClassNamesProcessorStep(_WithoutFeatures):
    """Add `observation.class_names`, the names of the class ids in an environment's masks.

    Attributes:
        class_names: position = id.
    """

    class_names: list[str]

    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add the names."""
        return {**observation, CLASS_NAMES_KEY: list(self.class_names)}


@ProcessorStepRegistry.register("so101_roles")
@dataclass
class RolesProcessorStep(_WithoutFeatures):
    """Add `observation.watched`, (B, W) int64: the class ids of what a policy watches, by each task sentence.

    Attributes:
        watched, roles, class_names, synonyms: see `Roles`.
        observed: whether masks come with the observation; then its `observation.class_names`, if present,
            replace `class_names`.
    """

    watched: list[str]
    roles: dict[str, str]
    class_names: list[str]
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    observed: bool = False

    def __post_init__(self) -> None:
        roles = Roles(self.watched, self.roles, self.class_names, self.synonyms)
        self._ids = cache(roles.ids)  # few sentences, many samples

    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add the ids.

        Raises:
            ValueError: if there is no sentence, or it does not name one class for each role.
        """
        result = dict(observation)
        names = result.pop(CLASS_NAMES_KEY, None)
        if self.observed and names is not None and names != self.class_names:
            self.class_names = names
            self.__post_init__()
        task = (self.transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get("task")
        if not task:
            raise ValueError(
                "task: found no sentence, expected one that names the objects. Give one (lerobot-rollout): "
                "`--task='Put the red cube into the blue bowl.'`; or record the dataset with one."
            )
        sentences = [task] if isinstance(task, str) else list(task)
        device = next(value.device for value in result.values() if isinstance(value, Tensor))
        result[WATCHED] = torch.tensor([self._ids(sentence) for sentence in sentences], device=device)
        return result
