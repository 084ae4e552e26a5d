# SPDX-License-Identifier: Apache-2.0
"""Names of the features that carry masks and depth, before and after perception."""

from lerobot.utils.constants import OBS_IMAGES, OBS_STR

RECORD_HINT = "Record masks and depth: `so101-demos --seg=true --depth=true`, or on a robot `--robot.seg=true --robot.depth=true`."


def seg_image_key(camera: str) -> str:
    """Key of the recorded class ids, (B, 1, H, W)."""
    return f"{OBS_IMAGES}.{camera}_seg"


def depth_image_key(camera: str) -> str:
    """Key of the recorded depth, (B, 1, H, W), millimetres."""
    return f"{OBS_IMAGES}.{camera}_depth"


def seg_key(camera: str) -> str:
    """Key of the class ids a policy reads, (B, h, w) uint8."""
    return f"{OBS_STR}.seg.{camera}"


def disparity_key(camera: str) -> str:
    """Key of the disparity a policy reads, (B, h, w) float32 in 0..255, near = 255."""
    return f"{OBS_STR}.disparity.{camera}"
