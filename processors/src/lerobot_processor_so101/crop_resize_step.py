# SPDX-License-Identifier: Apache-2.0
"""The processor step that crops and resizes pictures and whatever lies on them, so that they stay aligned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import ObservationProcessorStep, ProcessorStepRegistry, RobotObservation
from torch import Tensor

from .checks import check_choices
from .deferred import PERCEPTION, Features
from .keys import depth_image_key, disparity_key, image_key, seg_image_key, seg_key
from .resize import cut, resize_area, resize_ids, resize_linear

_SMOOTH = {"area": resize_area, "linear": resize_linear}


@ProcessorStepRegistry.register("so101_crop_resize")
@dataclass
class CropResizeProcessorStep(ObservationProcessorStep):
    """Crop and resize every picture, mask and depth map of the cameras alike.

    Pictures and disparity are smoothed; ids and metric depth are picked, since the mean of two classes is a third
    and the mean of two depths lies in the air. Before a perception step it decides what the model sees, after one
    it changes what the model gave, deferred or not.

    Attributes:
        cameras: names of the cameras.
        crop: [top, left, height, width] of the part to keep, as fractions of the picture, so that it means the
            same for pictures and masks of different sizes. [0, 0.125, 1, 0.75] is the square in 640 x 480.
        image_size: (h, w) of the result in pixels; None leaves the size that the crop gives.
        interpolation: "area" or "linear", as OpenCV's INTER_AREA and INTER_LINEAR; for pictures and disparity.

    Raises:
        ValueError: a crop outside the picture, or an unknown interpolation.
    """

    cameras: list[str]
    crop: list[float] | None = None
    image_size: list[int] | None = None
    interpolation: str = "area"

    def __post_init__(self) -> None:
        check_choices(self, {"interpolation": sorted(_SMOOTH)})
        cut(torch.empty(1, 1, device="meta"), self.crop)  # a crop outside the picture is refused here

    @torch.no_grad()
    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Crop and resize what is there, and whatever a perception step has deferred."""
        result = {**observation, **self._changed(observation)}
        if PERCEPTION in result:
            result[PERCEPTION].then(lambda features: {**features, **self._changed(features)})
        return result

    def _changed(self, features: Features) -> Features:
        smooth = _SMOOTH[self.interpolation]
        changed = {}
        for camera in self.cameras:
            for key in (image_key(camera), disparity_key(camera)):
                if key in features:
                    changed[key] = self._change(features[key], smooth)
            for key in (seg_key(camera), seg_image_key(camera), depth_image_key(camera)):
                if key in features:
                    changed[key] = self._change(features[key], resize_ids)
        return changed

    def _change(self, frames: Tensor, resize: Callable[[Tensor, tuple[int, int]], Tensor]) -> Tensor:
        frames = cut(frames, self.crop)
        return frames if self.image_size is None else resize(frames, (self.image_size[0], self.image_size[1]))

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return {
            "cameras": list(self.cameras),
            "crop": None if self.crop is None else list(self.crop),
            "image_size": None if self.image_size is None else list(self.image_size),
            "interpolation": self.interpolation,
        }

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Declare the new sizes."""
        observation = dict(features.get(PipelineFeatureType.OBSERVATION, {}))
        keys = (image_key, disparity_key, seg_key, seg_image_key, depth_image_key)
        for key in (key(camera) for camera in self.cameras for key in keys):
            if key in observation:
                old = observation[key]
                size = self.image_size or cut(torch.empty(old.shape, device="meta"), self.crop).shape[-2:]
                observation[key] = PolicyFeature(type=old.type, shape=(*old.shape[:-2], *size))
        return {**features, PipelineFeatureType.OBSERVATION: observation}
