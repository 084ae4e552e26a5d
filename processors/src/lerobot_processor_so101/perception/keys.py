# SPDX-License-Identifier: Apache-2.0
"""Keys of the features with images, masks and depth, and how to read them from an observation."""

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.processor import RobotObservation
from lerobot.utils.constants import OBS_IMAGES, OBS_STR
from torch import Tensor

# What an environment may add:
FPS = f"{OBS_STR}.fps"  # control periods per second
CLASS_NAMES_KEY = f"{OBS_STR}.class_names"  # of the ids in its masks, a list of str

WATCHED = f"{OBS_STR}.watched"  # class ids of what a policy watches, by the task sentence, (B, W) int64
RECORD_HINT = (
    "Record masks and depth: `so101-demos --seg=true --depth=true`, or on a robot `--robot.seg=true "
    "--robot.depth=true`."
)


def image_key(camera: str) -> str:
    """Return the key of a camera's RGB images, (B, 3, H, W) in [0, 1]."""
    return f"{OBS_IMAGES}.{camera}"


def seg_image_key(camera: str) -> str:
    """Return the key of class ids in the observation, (B, 1, H, W)."""
    return f"{OBS_IMAGES}.{camera}_seg"


def depth_image_key(camera: str) -> str:
    """Return the key of depth in the observation, (B, 1, H, W) [mm]."""
    return f"{OBS_IMAGES}.{camera}_depth"


def seg_key(camera: str) -> str:
    """Return the key of the class ids that a policy reads, (B, h, w) uint8."""
    return f"{OBS_STR}.seg.{camera}"


def seg_logits_key(camera: str) -> str:
    """Return the key of logits, (B, C, h, w)."""
    return f"{OBS_STR}.seg_logits_{camera}"


def seg_top_k_key(camera: str) -> str:
    """Return the key of the stored top-k scores, (B, 1, k, 1 + h * w); see `stored.decode_top_k`."""
    return f"{OBS_STR}.seg_top_k.{camera}"


def disparity_key(camera: str) -> str:
    """Return the key of the disparity that a policy reads, (B, h, w) float32 in 0..255, near = 255."""
    return f"{OBS_STR}.disparity.{camera}"


def rgb_cameras(features: dict[str, PolicyFeature] | None) -> dict[str, PolicyFeature]:
    """Return the RGB images among the features; masks and depth, which LeRobot stores as images, are not."""
    return {
        key: feature
        for key, feature in (features or {}).items()
        if feature.type is FeatureType.VISUAL and key.startswith(f"{OBS_IMAGES}.") and feature.shape[0] == 3
    }


def camera_image(observation: RobotObservation, key: str) -> Tensor:
    """Return a camera's RGB images, (B, 3, H, W) or (B, T, 3, H, W).

    Raises:
        ValueError: if they are missing or do not have three channels.
    """
    image = _get(observation, key, "A perception model needs RGB images: record or render them.")
    if image.ndim < 4 or image.shape[-3] != 3:
        raise ValueError(f"{key}: found shape {tuple(image.shape)}, expected three channels, (B, 3, H, W).")
    return image


def camera_plane(observation: RobotObservation, key: str, hint: str) -> Tensor:
    """Return one-channel images, (..., 1, H, W).

    Raises:
        ValueError: if they are missing (the message ends with the hint) or do not have one channel.
    """
    plane = _get(observation, key, hint)
    if plane.ndim < 3 or plane.shape[-3] != 1:
        raise ValueError(f"{key}: found shape {tuple(plane.shape)}, expected one channel, (B, 1, H, W).")
    return plane


def _get(observation: RobotObservation, key: str, hint: str) -> Tensor:
    if key not in observation:
        found = sorted(name for name in observation if name.startswith(OBS_IMAGES))
        raise ValueError(f"found no {key!r} among the images {found}. {hint}")
    return observation[key]
