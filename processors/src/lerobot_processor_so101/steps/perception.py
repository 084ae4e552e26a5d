# SPDX-License-Identifier: Apache-2.0
"""The base of the perception steps, and the sources that it combines.

For each camera, a step takes its features from the first source that applies:

1. stored: a dataset from `so101-precompute` has them under their own keys. A `Source` decodes them.
2. observed: the model's name is "observation", and the feature is made from an image that comes with the
   observation, such as a simulator's ids or a depth camera's depth. A `Source` decodes it; the image is then
   dropped.
3. live: a `LiveSource` runs the model on `observation.images.<camera>`, in one call for all cameras and
   stacked frames, and with `defer` once per predicted chunk instead of once per tick.

A step is a dataclass of options; its `__post_init__` passes its three sources to `set_sources`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.processor import RobotObservation
from torch import Tensor

from ..perception.deferred import PERCEPTION, Deferred, Features, PerceptionRunner
from ..perception.identity import ModelIdentity
from ..perception.keys import camera_image, image_key
from .check_observation import ObservationStep

OBSERVED = "observation"  # as a model's name: the feature comes with the observation


class Source(NamedTuple):
    """A feature, or an image to make it from, that is already in the observation."""

    key: Callable[[str], str]  # of a camera's value
    read: Callable[[RobotObservation, str], Tensor]  # the feature, (..., h, w), from observation and key


@dataclass
class LiveSource:
    """A perception model that is loaded when it is first needed; implements `PerceptionRunner`."""

    load: Callable[[], Any]  # returns the model
    method: str  # of the model, from a list of (N, 3, H, W) images to a list of outputs
    to_features: Callable[[str, Any], Features]  # by key, (N, h, w), from a camera's name and an output
    identity: dict[str, Any] | None = None  # that the model must have; None accepts any

    @cached_property
    def model(self) -> Any:
        """The model. Raises a ValueError if there is none, or it is not the one of the checkpoint."""
        from ..models.memory import keep_freed_memory

        keep_freed_memory()
        model = self.load()
        if self.identity is not None:
            ModelIdentity.from_dict(self.identity).check(model.identity, "this checkpoint")
        return model

    def run_perception(self, frames: Sequence[Features]) -> list[Features]:
        """Compute the features of several observations in one call of the model."""
        flat = [(i, camera, images) for i, views in enumerate(frames) for camera, images in views.items()]
        # (B, 3, H, W) and (B, T, 3, H, W) -> (N, 3, H, W)
        outputs = getattr(self.model, self.method)([images.flatten(0, -4) for *_, images in flat])
        features: list[Features] = [{} for _ in frames]
        for (i, camera, images), output in zip(flat, outputs, strict=True):
            for key, values in self.to_features(camera, output).items():
                features[i][key] = values.unflatten(0, images.shape[:-3])
        return features


def _info(features: dict[str, dict], key: str) -> dict[str, Any]:
    """Return the `info` of a feature in a dataset's metadata, empty if there is none."""
    return (features.get(key) or {}).get("info") or {}


@dataclass
class PerceptionStep(ObservationStep):
    """Add features of every camera, from the first source that applies; see the module.

    The checkpoint contains the identity of the model, not its weights; another model is refused.

    Attributes:
        cameras: names of the cameras.
        image_size: (h, w) of the features in pixels.
        defer: run the model in `resolve_perception`, where the policy predicts a chunk.
        identity: identity of the model this step was created with; None takes the model's.
        color_order: channel order of the images, "rgb" or "bgr"; models get RGB.

    Raises:
        ValueError: if `color_order` is neither, or there is no such model.
    """

    cameras: list[str]
    image_size: list[int] = field(default_factory=lambda: [84, 84])
    defer: bool = True
    identity: dict[str, Any] | None = None
    color_order: str = "rgb"

    def set_sources(self, name: str, stored: Sequence[Source], observed: Source, live: LiveSource) -> None:
        """Set the sources: `stored`, the main feature first, and by the model's name `observed` or `live`.

        With an empty name all features must be stored.
        """
        if self.color_order not in ("rgb", "bgr"):
            raise ValueError(f"color_order: found {self.color_order!r}, expected 'rgb' or 'bgr'.")
        self.stored = stored
        self.observed = observed if name == OBSERVED else None
        self.live = live if name not in ("", OBSERVED) else None
        if self.live is not None and self.identity is None:  # a wrong name fails when the pipeline is built
            self.identity = live.model.identity.to_dict()

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the features."""
        return self.image_size[0], self.image_size[1]

    @torch.no_grad()
    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add the features of every camera, deferred if a model must run.

        Raises:
            ValueError: if a key is missing or its value is malformed.
        """
        result, live = dict(observation), []
        for camera in self.cameras:
            key = self.stored[0].key(camera)
            if key in observation:
                result |= {s.key(camera): s.read(observation, s.key(camera)) for s in self.stored}
            elif self.observed is not None:
                image = self.observed.key(camera)
                result[key] = self.observed.read(observation, image)
                del result[image]
            else:
                live.append(camera)
        if live:
            assert self.live is not None
            self.add_live(result, live, self.live)
        return result

    def add_live(self, observation: RobotObservation, cameras: list[str], runner: PerceptionRunner) -> None:
        """Add the features that a model computes from the images of some cameras, now or deferred."""
        images = {camera: camera_image(observation, image_key(camera)) for camera in cameras}
        if self.color_order == "bgr":
            images = {camera: values.flip(-3) for camera, values in images.items()}
        if self.defer:
            observation.setdefault(PERCEPTION, Deferred()).add_request(runner, images)
        else:
            observation.update(runner.run_perception([images])[0])

    def check_dataset(self, features: dict[str, dict]) -> None:
        """Check that the stored features of a dataset, by its metadata, come from this step's model.

        Raises:
            ValueError: if they come from another model.
        """
        for key in map(self.stored[0].key, self.cameras):
            stored = _info(features, key).get("perception")
            if stored is None:
                continue
            model = ModelIdentity.from_dict(stored)
            if self.identity is None:
                raise ValueError(
                    f"{key} in the dataset comes from the model {model.name!r}, but the policy reads it from "
                    f"the observation. Name the model, so that the policy can run it later: {model.name!r}."
                )
            model.check(ModelIdentity.from_dict(self.identity), f"{key} in the dataset")

    def check_class_names(
        self, expected: Sequence[str], features: dict[str, dict], option: str = "class_names"
    ) -> None:
        """Check that the classes of the segmenter, or of the dataset's ids, are those of a policy's option.

        Args:
            expected: class names of the policy; position = id.
            features: features of the dataset's metadata; ids without class names pass.
            option: the policy's option, for the message.

        Raises:
            ValueError: if the classes are others; the message contains the flag that fits.
        """
        if self.observed is not None:
            infos = {key: _info(features, key) for key in map(self.observed.key, self.cameras)}
        else:
            identity = self.identity or {}
            infos = {f"segmenter {identity.get('name')!r}": identity}
        for owner, info in infos.items():
            names = info.get("class_names")
            if names is not None and list(names) != list(expected):
                raise ValueError(
                    f"{option}: found {list(expected)}, expected those of {owner}: "
                    f"`--policy.{option}='{json.dumps(list(names))}'`."
                )

    def declare(self, features: dict[str, PolicyFeature]) -> None:
        for camera in self.cameras:
            if self.observed is not None:
                features.pop(self.observed.key(camera), None)
            for source in self.stored:
                features[source.key(camera)] = PolicyFeature(type=FeatureType.VISUAL, shape=self.size)
