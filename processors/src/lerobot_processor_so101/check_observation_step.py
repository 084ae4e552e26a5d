# SPDX-License-Identifier: Apache-2.0
"""Processor steps that notice an observation which is not what a policy was trained on."""

from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import ObservationProcessorStep, ProcessorStepRegistry, RobotObservation
from torch import Tensor

from .keys import FPS

_TOLERANCE = 0.02  # of the ratio of width to height


@ProcessorStepRegistry.register("so101_tell_fps")
@dataclass
class TellFPSProcessorStep(ObservationProcessorStep):
    """Add `observation.fps`, the rate of an environment, which LeRobot does not tell a policy.

    Attributes:
        fps: control periods per second [Hz].
    """

    fps: int

    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add the rate."""
        return {**observation, FPS: torch.tensor([float(self.fps)])}

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return {"fps": self.fps}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """No feature is declared: no policy learns from the rate."""
        return features


@ProcessorStepRegistry.register("so101_check_observation")
@dataclass
class CheckObservationProcessorStep(ObservationProcessorStep):
    """Refuse another rate, pictures of another shape, and cameras that hang.

    Attributes:
        fps: the rate the policy was trained at; `observation.fps`, where it is told, must be the same, and is dropped.
        aspects: width over height of pictures by key.
        max_still: observations of one picture, equal to the last bit, after which a camera counts as hanging; 0 never.

    Raises:
        ValueError: what was found in which key, and what to do.
    """

    fps: int
    aspects: dict[str, float] = field(default_factory=dict)
    max_still: int = 0
    _last: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _still: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Check, and return what is left."""
        result = dict(observation)
        told = result.pop(FPS, None)
        if told is not None and float(told.flatten()[0]) != self.fps:
            raise ValueError(
                f"fps: found {float(told.flatten()[0]):g} Hz, expected {self.fps} Hz, which this policy was trained "
                "at. Run it at that rate, or train it for this one: `--policy.fps`."
            )
        for key, aspect in self.aspects.items():
            if key in result:
                self._check_shape(key, result[key], aspect)
                if self.max_still:
                    self._check_fresh(key, result[key])
        return result

    def _check_shape(self, key: str, picture: Tensor, aspect: float) -> None:
        height, width = picture.shape[-2:]
        if abs(width / height / aspect - 1) > _TOLERANCE:
            raise ValueError(
                f"{key}: found {width}x{height} pixels, expected a width of {aspect:.3g} times the height, as in "
                "training. Set the camera's width and height, or crop with the step so101_crop_resize."
            )

    def _check_fresh(self, key: str, picture: Tensor) -> None:
        last = self._last.get(key)
        same = last is not None and last.shape == picture.shape and torch.equal(last, picture)
        self._still[key] = self._still.get(key, 0) + 1 if same else 0
        self._last[key] = picture
        if self._still[key] >= self.max_still:
            raise ValueError(
                f"{key}: found the same picture {self._still[key] + 1} times, expected a new one each time: the camera "
                "hangs. Plug it in again; for a simulator, which may stand still, set `--policy.max_still=0`."
            )

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return {"fps": self.fps, "aspects": dict(self.aspects), "max_still": self.max_still}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Nothing changes."""
        return features
