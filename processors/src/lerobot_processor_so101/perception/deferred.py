# SPDX-License-Identifier: Apache-2.0
"""Deferred perception: models run once per predicted chunk, not once per tick.

LeRobot runs the preprocessor on every control tick, but a policy that predicts chunks needs its output only
when its action queue is empty. So a step does not run its model. It stores a `Deferred` under
`observation.perception`, an undeclared key that LeRobot's steps pass through, and the policy calls
`resolve_perception` before it predicts.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lerobot.utils.constants import OBS_STR
from torch import Tensor

PERCEPTION = f"{OBS_STR}.perception"

type Features = dict[str, Tensor]


class PerceptionRunner(Protocol):
    """Runs a perception model."""

    def run_perception(self, frames: Sequence[Features]) -> list[Features]:
        """Compute features of several observations, each its images by camera, in one call of the model."""


class Deferred:
    """Features of one observation that are computed when they are needed."""

    def __init__(self) -> None:
        self._requests: list[tuple[PerceptionRunner, Features]] = []
        self._transforms: list[Callable[[Features], Features]] = []
        self._features: Features | None = None

    def add_request(self, runner: PerceptionRunner, images: Features) -> None:
        """Add images, by camera, that a runner will process."""
        self._requests.append((runner, images))

    def add_transform(self, transform: Callable[[Features], Features]) -> None:
        """Add a transform of the computed features, for a later step of the pipeline."""
        self._transforms.append(transform)

    def resolve(self) -> Features:
        """Return the features; the models run in the first call only."""
        return resolve_all([self])[0]


def resolve_all(many: Sequence[Deferred]) -> list[Features]:
    """Return the features of several observations, such as a stack of frames, with one call of each model.

    Those that were resolved before cost nothing.
    """
    pending: dict[Deferred, Features] = {deferred: {} for deferred in many if deferred._features is None}
    runners = {id(runner): runner for deferred in pending for runner, _ in deferred._requests}
    for runner in runners.values():
        requests = [(d, images) for d in pending for other, images in d._requests if other is runner]
        outputs = runner.run_perception([images for _, images in requests])
        for (deferred, _), output in zip(requests, outputs, strict=True):
            pending[deferred].update(output)
    for deferred, features in pending.items():
        for transform in deferred._transforms:
            features = transform(features)
        deferred._features = features
        deferred._requests.clear()  # frees the images
    return [dict(deferred._features or {}) for deferred in many]


def resolve_perception(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a preprocessor's output with the features instead of `observation.perception`, if it has that.

    Call it in `forward` and where actions are predicted.
    """
    deferred = batch.get(PERCEPTION)
    if deferred is None:
        return batch
    return {**{key: value for key, value in batch.items() if key != PERCEPTION}, **deferred.resolve()}
