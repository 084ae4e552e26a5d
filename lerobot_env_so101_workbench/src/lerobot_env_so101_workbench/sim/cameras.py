# SPDX-License-Identifier: Apache-2.0
"""Which images are rendered and how they are named: the same for environment, robot and demonstrations.

A camera `top` gives `top` (RGB), `top_seg` (class ids) and `top_depth` (millimetres). LeRobot treats
one-channel images as depth maps, so class ids and depth are both (H, W, 1) uint16 and stored losslessly: as
TIFF, or as HEVC video with the linear quantisation of `DEPTH_ENCODER`, which maps each class id to that
number of millimetres.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..names import check_cameras, check_size

if TYPE_CHECKING:
    from .world import World

MAX_DEPTH_MM = 4095
# Linear, 1 mm per step: LeRobot's default is logarithmic and begins at 10 mm, which would merge class ids.
DEPTH_ENCODER = {"depth_min": 0.0, "depth_max": 4.095, "use_log": False}


@dataclass(kw_only=True)
class ImageOptions:
    """Options that the configurations of environment, robot and demonstrations share.

    Args:
        height, width: image size [pixels].
        rgb: render RGB images.
        seg: render class ids, with one channel.
        depth: render depth maps [mm], with one channel.
    """

    height: int = 224
    width: int = 224
    rgb: bool = True
    seg: bool = False
    depth: bool = False


@dataclass(frozen=True)
class CameraSetup:
    """Cameras, image size and kinds of images; without `rgb`, `seg` and `depth` there are no images.

    Args:
        cameras: of top, wrist, front.
        height, width, rgb, seg, depth: see `ImageOptions`.
    """

    cameras: Sequence[str] = ("top", "wrist")
    height: int = 224
    width: int = 224
    rgb: bool = True
    seg: bool = False
    depth: bool = False

    @classmethod
    def of(cls, options: ImageOptions, cameras: Sequence[str]) -> CameraSetup:
        """Create the setup that a configuration asks for."""
        kinds = options.rgb, options.seg, options.depth
        return cls(tuple(cameras), options.height, options.width, *kinds)

    def check(self, prefix: str = "", cameras: str = "cameras") -> CameraSetup:
        """Return the setup if it can be rendered; `prefix` and `cameras` form the flags named in the message.

        Raises:
            ValueError: if a camera is unknown or the size is out of range.
        """
        check_cameras(self.cameras, f"{prefix}{cameras}")
        check_size(self.height, self.width, f"{prefix}width and {prefix}height")
        return self

    def flags(self, prefix: str = "--") -> list[str]:
        """Return the options of a command that renders this setup."""
        return [f"{prefix}{name}={json.dumps(value)}" for name, value in asdict(self).items()]

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Return the shape (H, W, C) of every image by name, in the order in which they are recorded."""
        channels = {"": 3 * self.rgb, "_seg": int(self.seg), "_depth": int(self.depth)}
        return {
            f"{camera}{suffix}": (self.height, self.width, n)
            for camera in self.cameras
            for suffix, n in channels.items()
            if n
        }

    def capture(self, world: World) -> dict[str, np.ndarray]:
        """Render every image: RGB (H, W, 3) uint8; class ids and depth [mm] (H, W, 1) uint16."""
        images: dict[str, np.ndarray] = {}
        for camera in self.cameras if self.shapes() else ():
            rgb, ids, metres = world.render(
                camera, self.height, self.width, rgb=self.rgb, ids=self.seg, depth=self.depth
            )
            if rgb is not None:
                images[camera] = rgb
            if ids is not None:
                images[f"{camera}_seg"] = ids.astype(np.uint16)[..., None]
            if metres is not None:
                millimetres = np.minimum(np.round(metres * 1000.0), MAX_DEPTH_MM)
                images[f"{camera}_depth"] = millimetres.astype(np.uint16)[..., None]
        return images
