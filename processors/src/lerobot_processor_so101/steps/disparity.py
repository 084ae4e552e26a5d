# SPDX-License-Identifier: Apache-2.0
"""The processor step that adds disparity of every camera."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from lerobot.processor import ProcessorStepRegistry, RobotObservation
from torch import Tensor

from ..perception.deferred import Features
from ..perception.disparity import Interpolation, depth_to_disparity, inverse_to_disparity
from ..perception.keys import RECORD_HINT, camera_plane, depth_image_key, disparity_key
from ..perception.resize import resize_area
from ..perception.stored import decode_disparity, floor_disparity
from .perception import OBSERVED, LiveSource, PerceptionStep, Source


@ProcessorStepRegistry.register("so101_disparity")
@dataclass
class DisparityProcessorStep(PerceptionStep):
    """Add `observation.disparity.<camera>`: (B, h, w) float32 in 0..255, near = 255. See `PerceptionStep`.

    Disparity is normalised per frame (min-max) over the image that the step is given, and averaged over the
    area of each new pixel afterwards. So a crop before this step changes the range, and a crop after it does
    not.

    Attributes:
        depth: name of a depth model that `make_depth_estimator` knows, or "observation" for depth of any unit
            in `observation.images.<camera>_depth`.
        interpolation: "area" or "linear", as OpenCV's INTER_AREA and INTER_LINEAR.
        whole: floor disparity to integers.
    """

    depth: str = OBSERVED
    interpolation: Interpolation = "area"
    whole: bool = False

    def __post_init__(self) -> None:
        self.set_sources(
            self.depth,
            stored=[Source(disparity_key, partial(read_disparity, size=self.size, floor=self.whole))],
            observed=Source(depth_image_key, self._read_depth),
            live=LiveSource(self._load, "estimate", self._to_features, self.identity),
        )

    def _load(self) -> Any:
        from ..models.depth import make_depth_estimator

        return make_depth_estimator(self.depth)

    def _read_depth(self, observation: RobotObservation, key: str) -> Tensor:
        depth = camera_plane(observation, key, RECORD_HINT).squeeze(-3)
        if self.whole and depth.shape[-2:] == self.size:
            return depth_to_disparity(depth).floor()  # before it is rounded to what a dataset can store
        disparity = depth_to_disparity(depth, size=self.size, interpolation=self.interpolation)
        return floor_disparity(disparity, self.whole)

    def _to_features(self, camera: str, inverse: Tensor) -> Features:
        disparity = inverse_to_disparity(inverse, self.size, interpolation=self.interpolation)
        return {disparity_key(camera): floor_disparity(disparity, self.whole)}


def read_disparity(
    observation: RobotObservation, key: str, size: tuple[int, int], floor: bool, hint: str = RECORD_HINT
) -> Tensor:
    """Decode stored disparity, average it to (h, w) = `size`, and floor it if asked; see `camera_plane`."""
    stored = decode_disparity(camera_plane(observation, key, hint))
    return floor_disparity(resize_area(stored, size), floor)
