# SPDX-License-Identifier: Apache-2.0
"""What the segmentation step and the disparity step have in common: where a feature comes from, and when."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.processor import ObservationProcessorStep, RobotObservation
from torch import Tensor

from .deferred import PERCEPTION, Deferred, Features, Perceiver
from .identity import ModelIdentity
from .keys import RECORD_HINT, camera_image, camera_plane, image_key

OBSERVED = "observation"  # in the place of a model's name: the feature comes with the observation


@dataclass
class PerceptionStep(ObservationProcessorStep):
    """Add one feature per camera, from the first of these that applies:

    - a dataset with precomputed perception (`so101-precompute`) has the feature already, in stored form;
    - with "observation" as the model's name it is made of a picture that comes with the observation, such as a
      simulator's ids or a depth camera's depth, which is then dropped;
    - otherwise the model looks at `observation.images.<camera>`: once per predicted chunk if `defer`, in one call
      for all cameras and stacked frames.

    The model's weights stay outside the checkpoint. Its identity is in it, and another model is refused.

    Attributes:
        cameras: names of the cameras to look through.
        image_size: (h, w) of the feature, in pixels.
        defer: leave the model's work to `resolve_perception`.
        identity: of the model this step was made with; None asks the model.
        color_order: of the pictures as they arrive, "rgb" or "bgr"; models look at RGB.

    Raises:
        ValueError: an unknown order of colours.
    """

    cameras: list[str]
    image_size: list[int] = field(default_factory=lambda: [84, 84])
    defer: bool = True
    identity: dict[str, Any] | None = None
    color_order: str = "rgb"
    _model: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.color_order not in ("rgb", "bgr"):
            raise ValueError(f"color_order: found {self.color_order!r}, expected 'rgb' or 'bgr'.")
        if self.model_name != OBSERVED and self.identity is None:
            self.identity = self.model.identity.to_dict()  # a wrong name fails now, not an hour into training

    @property
    @abstractmethod
    def model_name(self) -> str:
        """Name of the model, or "observation"."""

    @abstractmethod
    def load(self) -> Any:
        """Load the model."""

    @abstractmethod
    def feature_key(self, camera: str) -> str:
        """Key of the feature."""

    @abstractmethod
    def observed_key(self, camera: str) -> str:
        """Key of the picture that the feature is made of when it comes with the observation."""

    @abstractmethod
    def from_stored(self, plane: Tensor, key: str) -> Tensor:
        """The feature from its stored form, (..., 1, H, W)."""

    @abstractmethod
    def from_observed(self, plane: Tensor, key: str) -> Tensor:
        """The feature from what comes with the observation, (..., 1, H, W)."""

    @abstractmethod
    def perceive(self, frames: Sequence[Features]) -> list[Features]:
        """Compute the features of several observations in one call of the model.

        Args:
            frames: (B, 3, H, W) or (B, T, 3, H, W) pictures in [0, 1] by camera, one entry per observation.

        Returns:
            The features of each observation, (B, h, w) or (B, T, h, w).
        """

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the feature."""
        return self.image_size[0], self.image_size[1]

    @property
    def model(self) -> Any:
        """The model, loaded when first needed.

        Raises:
            ValueError: there is no such model, or it is not the one of the checkpoint.
        """
        if self._model is None:
            model = self.load()
            if self.identity is not None:
                ModelIdentity.from_dict(self.identity).check(model.identity, "this checkpoint")
            self._model = model
        return self._model

    @torch.no_grad()
    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add the feature of every camera, or the promise of it.

        Raises:
            ValueError: a key is missing or malformed; the message names it.
        """
        result = dict(observation)
        pictures: Features = {}
        for camera in self.cameras:
            key, observed = self.feature_key(camera), self.observed_key(camera)
            if key in observation:
                result[key] = self.stored(observation, key)
            elif self.model_name == OBSERVED:
                result[key] = self.from_observed(camera_plane(observation, observed, RECORD_HINT), observed)
                del result[observed]
            else:
                image = camera_image(observation, image_key(camera))
                pictures[camera] = image.flip(-3) if self.color_order == "bgr" else image
        if pictures:
            self.ask(self, pictures, result)
        return result

    def ask(self, perceiver: Perceiver, pictures: Features, result: RobotObservation) -> None:
        """Add what a perceiver makes of pictures, or the promise of it, to an observation."""
        if self.defer:
            result.setdefault(PERCEPTION, Deferred()).ask(perceiver, pictures)
        else:
            result.update(perceiver.perceive([pictures])[0])

    def stored(self, observation: RobotObservation, key: str) -> Tensor:
        """The feature from what a dataset holds under its key."""
        return self.from_stored(camera_plane(observation, key, RECORD_HINT), key)

    def check_dataset(self, features: dict[str, dict]) -> None:
        """Check that precomputed features in a dataset come from this step's model.

        Args:
            features: of the dataset's metadata.

        Raises:
            ValueError: another model made them.
        """
        for key in map(self.feature_key, self.cameras):
            made_by = ((features.get(key) or {}).get("info") or {}).get("perception")
            if made_by is None:
                continue
            expected = ModelIdentity.from_dict(made_by)
            if self.identity is None:
                raise ValueError(
                    f"{key} in the dataset was made by {expected.name!r}, but the policy reads what comes with the "
                    f"observation. Name the model, so that the policy can look by itself later: {expected.name!r}."
                )
            expected.check(ModelIdentity.from_dict(self.identity), f"{key} in the dataset")

    def in_one_call(
        self, frames: Sequence[Features], look: Callable[[list[Tensor]], list[Any]]
    ) -> list[dict[str, tuple[Any, torch.Size]]]:
        """Hand all pictures of all observations to a model together.

        Args:
            frames: as in `perceive`.
            look: the model, from (N, 3, H, W) batches to one answer per batch.

        Returns:
            For each observation and camera the answer, and the leading shape, (B,) or (B, T), to give it back.
        """
        flat = [
            (index, camera, images) for index, views in enumerate(frames) for camera, images in views.items()
        ]
        answers = look([images.flatten(0, -4) for _, _, images in flat])
        found: list[dict[str, tuple[Any, torch.Size]]] = [{} for _ in frames]
        for (index, camera, images), answer in zip(flat, answers, strict=True):
            found[index][camera] = (answer, images.shape[:-3])
        return found

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return {
            "cameras": list(self.cameras),
            "image_size": list(self.image_size),
            "defer": self.defer,
            "identity": self.identity,
            "color_order": self.color_order,
        }

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Declare what `observation` adds and drops."""
        observation = dict(features.get(PipelineFeatureType.OBSERVATION, {}))
        for camera in self.cameras:
            if self.model_name == OBSERVED:
                observation.pop(self.observed_key(camera), None)
            observation[self.feature_key(camera)] = PolicyFeature(type=FeatureType.VISUAL, shape=self.size)
        return {**features, PipelineFeatureType.OBSERVATION: observation}
