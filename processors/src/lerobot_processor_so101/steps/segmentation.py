# SPDX-License-Identifier: Apache-2.0
"""The processor step that adds class ids of every camera."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lerobot.processor import ProcessorStepRegistry, RobotObservation
from torch import Tensor

from ..perception.deferred import Features
from ..perception.keys import RECORD_HINT, camera_plane, disparity_key, seg_image_key, seg_key
from ..perception.resize import resize_ids
from ..perception.scores import Scores
from ..perception.stored import decode_ids, floor_disparity
from .disparity import read_disparity
from .perception import OBSERVED, LiveSource, PerceptionStep, Source

_BOTH = "This dataset has class ids: precompute both, `so101-precompute --depth=segmenter`."


@ProcessorStepRegistry.register("so101_segmentation")
@dataclass
class SegmentationProcessorStep(PerceptionStep):
    """Add `observation.seg.<camera>`: class ids, (B, h, w) uint8. See `PerceptionStep`.

    Attributes:
        segmenter: name of a segmenter that `make_segmenter` knows, or "observation" for ids in
            `observation.images.<camera>_seg`.
        classes: free-text classes of an open-vocabulary segmenter.
        disparity: also add `observation.disparity.<camera>` from the segmenter's disparity head, in the same
            pass.
        whole: floor disparity to integers.

    Raises:
        ValueError: if `disparity` is set for a segmenter without that head.
    """

    segmenter: str = OBSERVED
    classes: list[str] = field(default_factory=list)
    disparity: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if self.disparity and self.segmenter == OBSERVED:
            raise ValueError(
                "disparity: ids that come with the observation contain none; add a disparity step."
            )
        read_ids = IdReader(self.size)
        stored = [Source(seg_key, read_ids)]
        if self.disparity:
            read = partial(read_disparity, size=self.size, floor=self.whole, hint=_BOTH)
            stored.append(Source(disparity_key, read))
        live = LiveSource(self._load, "segment", self._to_features, self.identity)
        self.set_sources(self.segmenter, stored, Source(seg_image_key, read_ids), live)

    def _load(self) -> Any:
        from ..models import make_segmenter

        model = make_segmenter(self.segmenter, self.classes)
        if self.disparity and not model.predicts_disparity:
            raise ValueError(
                f"segmenter {self.segmenter!r} has no disparity head; add a disparity step instead."
            )
        return model

    def _to_features(self, camera: str, scores: Scores) -> Features:
        features = {seg_key(camera): scores.ids(self.size)}
        if self.disparity:
            features[disparity_key(camera)] = floor_disparity(scores.disparity_map(self.size), self.whole)
        return features


class IdReader:
    """Read class ids from an observation, at (h, w) = `size`; pixels are picked.

    Values of each key are checked once, since a check waits for the device. Without class names: 0..255.
    """

    def __init__(self, size: tuple[int, int], class_names: Sequence[str] | None = None) -> None:
        self._size, self._class_names = size, class_names
        self._checked: set[str] = set()

    def __call__(self, observation: RobotObservation, key: str) -> Tensor:
        """Return the ids, (..., h, w) uint8, of the image under a key.

        Raises:
            ValueError: if it is missing, has more than one channel, or contains something else than ids.
        """
        plane = camera_plane(observation, key, RECORD_HINT)
        if key not in self._checked:
            self._check(plane, key)
            self._checked.add(key)
        return resize_ids(decode_ids(plane), self._size)

    def _check(self, ids: Tensor, key: str) -> None:
        if ids.is_floating_point() and not bool((ids == ids.round()).all()):
            raise ValueError(
                f"{key}: found fractions, expected integer class ids. A dataset that is read in metres needs "
                "`--dataset.depth_output_unit=mm`. A robot or env must return uint16, since uint8 images are "
                "divided by 255."
            )
        low, high = (int(bound) for bound in ids.to(torch.int32).aminmax())
        if low < 0 or high > 255:
            raise ValueError(f"{key}: found class ids from {low} to {high}, expected 0..255.")
        if self._class_names is not None and high >= len(self._class_names):
            raise ValueError(
                f"{key}: found class id {high}, expected 0 to {len(self._class_names) - 1} for the classes "
                f"{list(self._class_names)}."
            )
