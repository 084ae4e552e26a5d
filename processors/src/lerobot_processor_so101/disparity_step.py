# SPDX-License-Identifier: Apache-2.0
"""The processor step that tells how far things are: disparity per camera."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lerobot.processor import ProcessorStepRegistry
from torch import Tensor

from .deferred import Features
from .disparity import Interpolation, depth_to_disparity, inverse_to_disparity
from .keys import depth_image_key, disparity_key
from .perception_step import OBSERVED, PerceptionStep
from .resize import resize_area
from .stored import cut_off, decode_disparity


@ProcessorStepRegistry.register("so101_disparity")
@dataclass
class DisparityProcessorStep(PerceptionStep):
    """Add `observation.disparity.<camera>`: (B, h, w) float32 in 0..255, near = 255. See `PerceptionStep`.

    Disparity is stretched to the nearest and farthest pixel of the picture that the step is given; then the area
    under each new pixel is averaged. So a crop before this step narrows the region of the stretch, and a crop after
    it does not.

    Attributes:
        depth: a name that `make_depth_estimator` knows, or "observation" for depth of any unit in
            `observation.images.<camera>_depth`.
        interpolation: "area" or "linear", as OpenCV's INTER_AREA and INTER_LINEAR.
        whole: cut off the fractions, as bytes do.
    """

    depth: str = OBSERVED
    interpolation: Interpolation = "area"
    whole: bool = False

    @property
    def model_name(self) -> str:
        """The depth model's name."""
        return self.depth

    def load(self) -> Any:
        """Load the depth model."""
        from .depth_models import make_depth_estimator

        return make_depth_estimator(self.depth)

    def feature_key(self, camera: str) -> str:
        """`observation.disparity.<camera>`."""
        return disparity_key(camera)

    def observed_key(self, camera: str) -> str:
        """`observation.images.<camera>_depth`."""
        return depth_image_key(camera)

    def from_stored(self, plane: Tensor, key: str) -> Tensor:
        """Disparity of another size is averaged."""
        return cut_off(resize_area(decode_disparity(plane), self.size), self.whole)

    def from_observed(self, plane: Tensor, key: str) -> Tensor:
        """Stretched on the full picture, before averaging hides its nearest and farthest pixel."""
        depth = plane.squeeze(-3)
        if self.whole and depth.shape[-2:] == self.size:
            return depth_to_disparity(depth).floor()  # before anything rounds
        disparity = depth_to_disparity(depth, size=self.size, interpolation=self.interpolation)
        return cut_off(disparity, self.whole)

    def perceive(self, frames: Sequence[Features]) -> list[Features]:
        """Estimate; see `PerceptionStep.perceive`."""
        return [
            {
                disparity_key(camera): self._disparity(inverse).unflatten(0, shape)
                for camera, (inverse, shape) in views.items()
            }
            for views in self.in_one_call(frames, self.model.estimate)
        ]

    def _disparity(self, inverse: Tensor) -> Tensor:
        disparity = inverse_to_disparity(inverse, self.size, interpolation=self.interpolation)
        return cut_off(disparity, self.whole)

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        own = {"depth": self.depth, "interpolation": self.interpolation, "whole": self.whole}
        return {**super().get_config(), **own}
