# SPDX-License-Identifier: Apache-2.0
"""Which pictures are taken, and under which names: the same for environment, robot and demonstrations.

A camera `top` gives `top` (colours), `top_seg` (class ids) and `top_depth` (millimetres). LeRobot takes a
one-channel picture for a depth map, so ids and depth both travel as (H, W, 1) uint16 and are stored losslessly:
as TIFF, or as HEVC video with the linear encoder settings of `DEPTH_ENCODER`, where an id is its own number of
millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .names import check_cameras, check_size

if TYPE_CHECKING:
    from .world import World

MAX_DEPTH_MM = 4095
# Linear, 1 mm per step: LeRobot's default is logarithmic and begins at 10 mm, which would merge class ids.
DEPTH_ENCODER = {"depth_min": 0.0, "depth_max": 4.095, "use_log": False}


@dataclass(frozen=True)
class View:
    """Cameras, picture size and kinds of pictures.

    With neither `rgb` nor `seg` nor `depth` there are no pictures, just the joints.
    """

    cameras: Sequence[str] = ("top", "wrist")
    height: int = 224
    width: int = 224
    rgb: bool = True
    seg: bool = False
    depth: bool = False

    def check(self, prefix: str = "", cameras: str = "cameras") -> View:
        """Return the view if it can be taken; `prefix` and `cameras` are what a user wrote on the command line.

        Raises:
            ValueError: unknown camera or impossible size.
        """
        check_cameras(self.cameras, f"{prefix}{cameras}")
        check_size(self.height, self.width, f"{prefix}width and {prefix}height")
        return self

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Shape (H, W, C) of every picture by name, in the order in which they are recorded."""
        shapes = {}
        for camera in self.cameras:
            if self.rgb:
                shapes[camera] = (self.height, self.width, 3)
            if self.seg:
                shapes[f"{camera}_seg"] = (self.height, self.width, 1)
            if self.depth:
                shapes[f"{camera}_depth"] = (self.height, self.width, 1)
        return shapes

    def capture(self, world: World) -> dict[str, np.ndarray]:
        """Take every picture: colours (H, W, 3) uint8, ids and depth [mm] (H, W, 1) uint16."""
        pictures: dict[str, np.ndarray] = {}
        for camera in self.cameras if self.shapes() else ():
            frame = world.render(
                camera, self.height, self.width, rgb=self.rgb, ids=self.seg, depth=self.depth
            )
            if frame.rgb is not None:
                pictures[camera] = frame.rgb
            if frame.ids is not None:
                pictures[f"{camera}_seg"] = frame.ids.astype(np.uint16)[..., None]
            if frame.depth is not None:
                millimetres = np.minimum(np.round(frame.depth * 1000.0), MAX_DEPTH_MM)
                pictures[f"{camera}_depth"] = millimetres.astype(np.uint16)[..., None]
        return pictures
