# SPDX-License-Identifier: Apache-2.0
"""Perception is paid once per predicted chunk, not once per tick.

LeRobot runs the preprocessor on every control tick, while a policy that predicts chunks looks only when its queue
of actions is empty. So a step does not run its model: it puts a `Deferred` under `observation.perception`, an
undeclared key that the stock steps pass through, and the policy calls `resolve_perception` when it looks.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lerobot.utils.constants import OBS_STR
from torch import Tensor

PERCEPTION = f"{OBS_STR}.perception"

type Features = dict[str, Tensor]


class Perceiver(Protocol):
    """A step that can be asked later."""

    def perceive(self, frames: Sequence[Features]) -> list[Features]:
        """Compute the features of several observations in one call of the model.

        Args:
            frames: pictures by camera, one entry per observation.

        Returns:
            The new features of each observation.
        """


class Deferred:
    """Perception of one observation that was asked for and is not computed yet."""

    def __init__(self) -> None:
        self._asked: list[tuple[Perceiver, Features]] = []
        self._then: list[Callable[[Features], Features]] = []
        self._features: Features | None = None

    def ask(self, perceiver: Perceiver, pictures: Features) -> None:
        """Ask a step to look at these pictures, by camera, when the time comes."""
        self._asked.append((perceiver, pictures))

    def then(self, change: Callable[[Features], Features]) -> None:
        """Change the features once they are there, as a later step of the pipeline would."""
        self._then.append(change)

    def resolve(self) -> Features:
        """Return the features; the models run the first time only."""
        return resolve_all([self])[0]


def resolve_all(many: Sequence[Deferred]) -> list[Features]:
    """Resolve several observations, such as a stack of frames, with one call of each model.

    Args:
        many: what was deferred at each tick; those that were resolved before cost nothing.

    Returns:
        The features of each.
    """
    todo = list({id(deferred): deferred for deferred in many if deferred._features is None}.values())
    found: dict[int, Features] = {id(deferred): {} for deferred in todo}
    perceivers = {id(perceiver): perceiver for deferred in todo for perceiver, _ in deferred._asked}
    for key, perceiver in perceivers.items():
        asked = [(d, pictures) for d in todo for other, pictures in d._asked if id(other) == key]
        answers = perceiver.perceive([pictures for _, pictures in asked])
        for (deferred, _), answer in zip(asked, answers, strict=True):
            found[id(deferred)].update(answer)
    for deferred in todo:
        features = found[id(deferred)]
        for change in deferred._then:
            features = change(features)
        deferred._features = features
        deferred._asked.clear()  # frees the pictures
    return [dict(deferred._features or {}) for deferred in many]


def resolve_perception(batch: dict[str, Any]) -> dict[str, Any]:
    """Compute what a batch left for later. Call it in `forward` and where actions are predicted.

    Args:
        batch: what a pipeline gave.

    Returns:
        The batch with features in the place of `observation.perception`; the very batch if nothing was left.
    """
    deferred = batch.get(PERCEPTION)
    if deferred is None:
        return batch
    return {**{key: value for key, value in batch.items() if key != PERCEPTION}, **deferred.resolve()}
