# SPDX-License-Identifier: Apache-2.0
"""The processor step for the roles of objects in the task sentence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from lerobot.processor import ProcessorStepRegistry, RobotObservation
from torch import Tensor

from ..perception.instruction import task_sentences
from ..perception.keys import CLASS_NAMES_KEY, WATCHED
from ..perception.roles import Roles
from .check_observation import ObservationStep

_NO_SENTENCE = (
    "task: found no sentence, expected one that names the objects. Give one (lerobot-rollout): "
    "`--task='Put the red cube into the blue bowl.'`; or record the dataset with one."
)


@ProcessorStepRegistry.register("so101_roles")
@dataclass
class RolesProcessorStep(ObservationStep):
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
        self._read(self.class_names)

    def _read(self, class_names: Sequence[str]) -> None:
        """Use masks with these classes."""
        self._names = class_names
        # few sentences, many samples
        self._ids = cache(Roles(self.watched, self.roles, class_names, self.synonyms).ids)

    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add the ids.

        Raises:
            ValueError: if there is no sentence, or it does not name one class for each role.
        """
        result = dict(observation)
        added = result.pop(CLASS_NAMES_KEY, None)
        names = added if self.observed and added is not None else self.class_names
        if names != self._names:
            self._read(names)
        sentences = task_sentences(self.transition, _NO_SENTENCE)
        device = next(value.device for value in result.values() if isinstance(value, Tensor))
        result[WATCHED] = torch.tensor([self._ids(sentence) for sentence in sentences], device=device)
        return result
