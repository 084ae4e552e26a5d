# SPDX-License-Identifier: Apache-2.0
"""Processor steps that refuse observations unlike those a policy was trained on."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import ObservationProcessorStep, ProcessorStepRegistry, RobotObservation
from torch import Tensor

from ..perception.keys import CLASS_NAMES_KEY, FPS

_TOLERANCE = 0.02  # of the ratio of width to height


@dataclass
class ObservationStep(ObservationProcessorStep):
    """A step that is a dataclass of its options; it changes no declared feature unless `declare` does."""

    def get_config(self) -> dict[str, Any]:
        return asdict(self)

    def declare(self, features: dict[str, PolicyFeature]) -> None:
        """Change the features of the observation in place, as `observation` changes their values."""

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        observation = dict(features.get(PipelineFeatureType.OBSERVATION, {}))
        self.declare(observation)
        return {**features, PipelineFeatureType.OBSERVATION: observation}


@ProcessorStepRegistry.register("so101_tell_fps")
@dataclass
class AddFPSProcessorStep(ObservationStep):
    """Add `observation.fps`, the rate of an environment [Hz], which LeRobot does not pass to a policy."""

    fps: int

    def observation(self, observation: RobotObservation) -> RobotObservation:
        return {**observation, FPS: torch.tensor([float(self.fps)])}


@ProcessorStepRegistry.register("so101_tell_class_names")
@dataclass
class AddClassNamesProcessorStep(ObservationStep):
    """Add `observation.class_names`, the names of the class ids in an environment's masks; position = id."""

    class_names: list[str]

    def observation(self, observation: RobotObservation) -> RobotObservation:
        return {**observation, CLASS_NAMES_KEY: list(self.class_names)}


@ProcessorStepRegistry.register("so101_check_observation")
@dataclass
class CheckObservationProcessorStep(ObservationStep):
    """Refuse another rate, images of another aspect ratio, masks of other classes, and frozen cameras.

    Attributes:
        fps: rate the policy was trained at [Hz]. `observation.fps`, if present, must be equal; it is dropped.
        aspects: width / height of the images by key.
        max_still: number of bit-identical repeats of an image after which its camera counts as frozen; 0
            disables the check.
        class_ids: ids of the classes that the policy reads from observed masks, by name. They must be those
            in `observation.class_names`, if present.
    """

    fps: int
    aspects: dict[str, float] = field(default_factory=dict)
    max_still: int = 0
    class_ids: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._last: dict[str, Tensor] = {}  # images of the last observation by key
        self._still: dict[str, int] = {}  # repeats of each

    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Check an observation, and drop its rate.

        Raises:
            ValueError: if the rate, an aspect ratio or a class differs, or a camera is frozen.
        """
        result = dict(observation)
        rate = result.pop(FPS, None)
        if rate is not None and float(rate.flatten()[0]) != self.fps:
            raise ValueError(
                f"fps: found {float(rate.flatten()[0]):g} Hz, expected {self.fps} Hz, the rate this policy "
                "was trained at. Run it at that rate, or train it for this one: `--policy.fps`."
            )
        names = result.get(CLASS_NAMES_KEY, [])
        for name, id_ in self.class_ids.items():
            if names and name not in names[id_ : id_ + 1]:
                raise ValueError(
                    f"class_names: found {names} in the environment, expected {name!r} with id {id_}, as in "
                    "training. For other tasks train a policy with roles: `--policy.roles`."
                )
        for key, aspect in self.aspects.items():
            if key in result:
                self._check_shape(key, result[key], aspect)
                if self.max_still:
                    self._check_fresh(key, result[key])
        return result

    def _check_shape(self, key: str, image: Tensor, aspect: float) -> None:
        height, width = image.shape[-2:]
        if abs(width / height / aspect - 1) > _TOLERANCE:
            raise ValueError(
                f"{key}: found {width}x{height} pixels, expected a width of {aspect:.3g} times the height, "
                "as in training. Set the camera's width and height, or crop with the step so101_crop_resize."
            )

    def _check_fresh(self, key: str, image: Tensor) -> None:
        last = self._last.get(key)
        same = last is not None and last.shape == image.shape and torch.equal(last, image)
        self._still[key] = self._still.get(key, 0) + 1 if same else 0
        self._last[key] = image
        if self._still[key] >= self.max_still:
            raise ValueError(
                f"{key}: found the same image {self._still[key] + 1} times, expected a new one each time: "
                "the camera is frozen. Reconnect it. In a simulator images may repeat: "
                "`--policy.max_still=0`."
            )
