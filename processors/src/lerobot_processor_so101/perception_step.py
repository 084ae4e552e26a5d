# SPDX-License-Identifier: Apache-2.0
"""The processor step that turns recorded masks and depth into what the policies read."""

from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.processor import ObservationProcessorStep, ProcessorStepRegistry, RobotObservation
from lerobot.utils.constants import OBS_IMAGES
from torch import Tensor

from .disparity import depth_to_disparity
from .keys import RECORD_HINT, depth_image_key, disparity_key, seg_image_key, seg_key
from .resize import resize_area, resize_ids


@ProcessorStepRegistry.register("so101_masks_and_disparity")
@dataclass
class MasksAndDisparityProcessorStep(ObservationProcessorStep):
    """Replace `observation.images.<camera>_seg` and `_depth` by class ids and disparity.

    | in                                 | out                                                      |
    |------------------------------------|----------------------------------------------------------|
    | `observation.images.<camera>_seg`  | `observation.seg.<camera>`, (B, h, w) uint8              |
    | `observation.images.<camera>_depth`| `observation.disparity.<camera>`, (B, h, w) float32 0..255 |

    Both inputs are (B, 1, H, W) of any real dtype: LeRobot stores class ids as a native depth map whose
    millimetres are the ids, and hands out float32 from a dataset but uint16 from a robot. Other observations
    pass untouched.

    Attributes:
        cameras: names of the cameras to read.
        image_size: (h, w) of the results, in pixels.
    """

    cameras: list[str]
    image_size: list[int] = field(default_factory=lambda: [84, 84])
    _ids_checked: bool = field(default=False, init=False, repr=False)

    @torch.no_grad()
    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add ids and disparity of every camera and drop what they were made of.

        Raises:
            ValueError: a key is missing or has no single channel, or the ids are not whole numbers in 0..255.
        """
        size = (self.image_size[0], self.image_size[1])
        result = dict(observation)
        for camera in self.cameras:
            seg_image, depth_image = seg_image_key(camera), depth_image_key(camera)
            ids, depth = _plane(observation, seg_image), _plane(observation, depth_image)
            if not self._ids_checked:
                _check_ids(ids, seg_image)
            del result[seg_image], result[depth_image]
            result[seg_key(camera)] = resize_ids(ids, size).to(torch.uint8)
            # Disparity is stretched to the full frame's nearest and farthest pixel, before averaging hides them.
            result[disparity_key(camera)] = resize_area(depth_to_disparity(depth), size)
        self._ids_checked = True  # once is enough, and each check waits for the device
        return result

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return {"cameras": list(self.cameras), "image_size": list(self.image_size)}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Swap the declared features as `observation` swaps the values."""
        observation = dict(features.get(PipelineFeatureType.OBSERVATION, {}))
        plane = PolicyFeature(type=FeatureType.VISUAL, shape=(self.image_size[0], self.image_size[1]))
        for camera in self.cameras:
            observation.pop(seg_image_key(camera), None)
            observation.pop(depth_image_key(camera), None)
            observation[seg_key(camera)] = plane
            observation[disparity_key(camera)] = plane
        return {**features, PipelineFeatureType.OBSERVATION: observation}


def _plane(observation: RobotObservation, key: str) -> Tensor:
    """Read a single-channel image, (..., 1, H, W), as (..., H, W)."""
    if key not in observation:
        found = sorted(name for name in observation if name.startswith(OBS_IMAGES))
        raise ValueError(f"found no {key!r} among the images {found}. {RECORD_HINT}")
    image = observation[key]
    if image.ndim < 3 or image.shape[-3] != 1:
        raise ValueError(f"{key}: found shape {tuple(image.shape)}, expected one channel, (B, 1, H, W).")
    return image.squeeze(-3)


def _check_ids(ids: Tensor, key: str) -> None:
    if ids.is_floating_point() and bool((ids != ids.round()).any()):
        raise ValueError(
            f"{key}: found fractions, expected whole class ids. A dataset is being read in metres: set "
            "`--dataset.depth_output_unit=mm`. A robot or env must hand out uint16, since uint8 images are "
            "divided by 255."
        )
    low, high = (int(bound) for bound in ids.to(torch.int32).aminmax())
    if low < 0 or high > 255:
        raise ValueError(f"{key}: found class ids from {low} to {high}, expected 0..255.")
