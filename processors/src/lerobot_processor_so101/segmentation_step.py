# SPDX-License-Identifier: Apache-2.0
"""The processor step that tells what is where: class ids per camera."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import ProcessorStepRegistry, RobotObservation
from torch import Tensor

from .deferred import Features
from .keys import camera_plane, disparity_key, seg_image_key, seg_key
from .perception_step import OBSERVED, PerceptionStep
from .resize import resize_area, resize_ids
from .stored import cut_off, decode_disparity, decode_ids


@ProcessorStepRegistry.register("so101_segmentation")
@dataclass
class SegmentationProcessorStep(PerceptionStep):
    """Add `observation.seg.<camera>`: class ids, (B, h, w) uint8. See `PerceptionStep`.

    Attributes:
        segmenter: a name that `make_segmenter` knows, or "observation" for ids in `observation.images.<camera>_seg`.
        classes: free-text classes of an open-vocabulary segmenter.
        disparity: also add `observation.disparity.<camera>` from the segmenter's own disparity head, in the same pass.
        whole: cut off the fractions of disparity, as bytes do.

    Raises:
        ValueError: `disparity` of a segmenter without that head.
    """

    segmenter: str = OBSERVED
    classes: list[str] = field(default_factory=list)
    disparity: bool = False
    whole: bool = False
    _checked: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.disparity and self.segmenter == OBSERVED:
            raise ValueError(
                "disparity: ids that come with the observation bring none; add a disparity step."
            )

    @property
    def model_name(self) -> str:
        """The segmenter's name."""
        return self.segmenter

    def load(self) -> Any:
        """Load the segmenter."""
        from .segmenters import make_segmenter

        model = make_segmenter(self.segmenter, self.classes)
        if self.disparity and not model.gives_disparity:
            raise ValueError(
                f"segmenter {self.segmenter!r} has no disparity head; add a disparity step instead."
            )
        return model

    @torch.no_grad()
    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add ids, and disparity if asked, of every camera, or the promise of them.

        Raises:
            ValueError: a key is missing or malformed; the message names it.
        """
        result = super().observation(observation)
        for camera in self.cameras if self.disparity else ():
            key = disparity_key(camera)
            if seg_key(camera) in observation or key in observation:
                hint = f"This dataset has {seg_key(camera)!r}: precompute both, `so101-precompute --depth=segmenter`."
                stored = decode_disparity(camera_plane(observation, key, hint))
                result[key] = cut_off(resize_area(stored, self.size), self.whole)
        return result

    def check_class_names(
        self, expected: Sequence[str], features: dict[str, dict], option: str = "class_names"
    ) -> None:
        """Check that ids mean what a policy was configured with.

        Args:
            expected: class names of the policy, position = id.
            features: of the dataset's metadata; one that says nothing about its classes is believed.
            option: of the policy, for the message.

        Raises:
            ValueError: the segmenter or the dataset has others; the message gives the flag that fits.
        """
        named = {f"segmenter {self.segmenter!r}": (self.identity or {}).get("class_names")}
        if self.segmenter == OBSERVED:
            keys = map(seg_image_key, self.cameras)
            named = {key: ((features.get(key) or {}).get("info") or {}).get("class_names") for key in keys}
        for owner, names in named.items():
            if names is not None and list(names) != list(expected):
                raise ValueError(
                    f"{option}: found {list(expected)}, expected those of {owner}: "
                    f"`--policy.{option}='{json.dumps(list(names))}'`."
                )

    def feature_key(self, camera: str) -> str:
        """`observation.seg.<camera>`."""
        return seg_key(camera)

    def observed_key(self, camera: str) -> str:
        """`observation.images.<camera>_seg`."""
        return seg_image_key(camera)

    def from_stored(self, plane: Tensor, key: str) -> Tensor:
        """Ids of another size are picked, never mixed."""
        if key not in self._checked:
            _check_ids(plane, key)
            self._checked.add(key)  # once is enough, and each check waits for the device
        return resize_ids(decode_ids(plane), self.size)

    from_observed = from_stored

    def perceive(self, frames: Sequence[Features]) -> list[Features]:
        """Segment; see `PerceptionStep.perceive`."""
        features: list[Features] = []
        for views in self.in_one_call(frames, self.model.segment):
            features.append({})
            for camera, (scores, shape) in views.items():
                features[-1][self.feature_key(camera)] = scores.ids(self.size).unflatten(0, shape)
                if self.disparity:
                    disparity = cut_off(scores.disparity_map(self.size), self.whole)
                    features[-1][disparity_key(camera)] = disparity.unflatten(0, shape)
        return features

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        own = {
            "segmenter": self.segmenter,
            "classes": list(self.classes),
            "disparity": self.disparity,
            "whole": self.whole,
        }
        return {**super().get_config(), **own}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Declare what `observation` adds and drops."""
        features = super().transform_features(features)
        if self.disparity:
            observation = features[PipelineFeatureType.OBSERVATION]
            observation.update(
                {disparity_key(camera): observation[seg_key(camera)] for camera in self.cameras}
            )
        return features


def _check_ids(ids: Tensor, key: str) -> None:
    if ids.is_floating_point() and not bool((ids == ids.round()).all()):
        raise ValueError(
            f"{key}: found fractions, expected whole class ids. A dataset is being read in metres: set "
            "`--dataset.depth_output_unit=mm`. A robot or env must hand out uint16, since uint8 images are "
            "divided by 255."
        )
    low, high = (int(bound) for bound in ids.to(torch.int32).aminmax())
    if low < 0 or high > 255:
        raise ValueError(f"{key}: found class ids from {low} to {high}, expected 0..255.")
