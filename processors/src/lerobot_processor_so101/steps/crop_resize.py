# SPDX-License-Identifier: Apache-2.0
"""The processor step that crops and resizes images, masks and depth alike, so that they stay aligned."""

from dataclasses import dataclass

import torch
from lerobot.configs import PolicyFeature
from lerobot.processor import ProcessorStepRegistry, RobotObservation

from ..config_checks import check_choices
from ..perception.deferred import PERCEPTION, Features
from ..perception.keys import depth_image_key, disparity_key, image_key, seg_image_key, seg_key
from ..perception.resize import crop_region, resize_area, resize_ids, resize_linear
from .check_observation import ObservationStep

_RESIZE = {"area": resize_area, "linear": resize_linear}
_INTERPOLATED = (image_key, disparity_key)
_KEYS = (*_INTERPOLATED, seg_key, seg_image_key, depth_image_key)


@ProcessorStepRegistry.register("so101_crop_resize")
@dataclass
class CropResizeProcessorStep(ObservationStep):
    """Crop and resize all images, masks and depth maps of the cameras alike.

    Images and disparity are interpolated. Ids and metric depth are picked: the mean of two classes is a third
    class, and the mean of two depths is at neither surface. Before a perception step, the crop is the model's
    input; after one, it applies to the model's output, deferred or not.

    Attributes:
        cameras: names of the cameras.
        crop: [top, left, height, width] of the region to keep, as fractions of the image, so that it fits
            images and masks of different sizes. [0, 0.125, 1, 0.75] is the central square of 640 x 480.
        image_size: (h, w) of the result in pixels; None keeps the size of the crop.
        interpolation: "area" or "linear", as OpenCV's INTER_AREA and INTER_LINEAR; for images and disparity.

    Raises:
        ValueError: if the crop is not inside the image, or the interpolation is unknown.
    """

    cameras: list[str]
    crop: list[float] | None = None
    image_size: list[int] | None = None
    interpolation: str = "area"

    def __post_init__(self) -> None:
        check_choices(self, {"interpolation": sorted(_RESIZE)})
        crop_region(torch.empty(1, 1, device="meta"), self.crop)  # raises if the crop is not inside

    @torch.no_grad()
    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Crop and resize the features of the observation, and those that a perception step has deferred."""
        result = {**observation, **self._crop_all(observation)}
        if PERCEPTION in result:
            result[PERCEPTION].add_transform(lambda features: {**features, **self._crop_all(features)})
        return result

    def _crop_all(self, features: Features) -> Features:
        cropped = {}
        for camera in self.cameras:
            for key in _KEYS:
                if key(camera) in features:
                    resize = _RESIZE[self.interpolation] if key in _INTERPOLATED else resize_ids
                    frames = crop_region(features[key(camera)], self.crop)
                    size = self.image_size or frames.shape[-2:]
                    cropped[key(camera)] = resize(frames, (size[0], size[1]))
        return cropped

    def declare(self, features: dict[str, PolicyFeature]) -> None:
        for key in (key(camera) for camera in self.cameras for key in _KEYS):
            if key in features:
                old = features[key]
                cropped = crop_region(torch.empty(old.shape, device="meta"), self.crop)
                size = self.image_size or cropped.shape[-2:]
                features[key] = PolicyFeature(type=old.type, shape=(*old.shape[:-2], *size))
