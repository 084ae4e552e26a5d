# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint can act in the workbench, and which images it needs.

A policy that runs perception models declares what they compute (`observation.seg.top`) and the RGB image that
they compute it from, of one channel and a nominal size, because its training data may have lacked that image.
"""

import hashlib
import json
from pathlib import Path

from lerobot.configs import PreTrainedConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from lerobot.utils.import_utils import register_third_party_plugins

from lerobot_processor_so101.arm import ACTION_NAMES, FPS, JOINTS

from .sim.cameras import CameraSetup


def read_config(path: Path) -> PreTrainedConfig:
    """Read the configuration in a `pretrained_model` folder of a policy for an SO-101 at 30 Hz.

    Raises:
        ValueError: if there is none, or it is of another robot or rate.
    """
    if not (path / "config.json").is_file():
        raise ValueError(
            f"--policy.path: found no policy in {path} (no config.json), expected a `pretrained_model` "
            "folder. Download a policy of the Hub first."
        )
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(path)
    inputs, outputs = config.input_features or {}, config.output_features or {}
    numbers = {key: feature for key, feature in inputs.items() if key == OBS_STATE}
    other = "--policy.path: the policy is of another robot:"
    for key, feature in {**numbers, **outputs}.items():
        if key not in (OBS_STATE, ACTION) or tuple(feature.shape) != (len(JOINTS),):
            raise ValueError(
                f"{other} {key} has shape {tuple(feature.shape)}, expected {ACTION} and {OBS_STATE} of shape "
                f"({len(JOINTS)},), the joints of an SO-101."
            )
    names = list(getattr(config, "action_feature_names", None) or ACTION_NAMES)
    if names != list(ACTION_NAMES):
        raise ValueError(f"{other} its actions are {names}, expected {list(ACTION_NAMES)}.")
    rate = getattr(config, "fps", FPS)
    if rate != FPS:
        raise ValueError(
            f"--policy.path: the policy was trained at {rate} Hz, expected {FPS} Hz, the workbench's rate."
        )
    return config


def needed_images(
    config: PreTrainedConfig, path: Path, default: tuple[int, int] | None = None
) -> CameraSetup:
    """Return the cameras that render what a policy was trained on, or what its segmenter was trained on.

    Args:
        default: size (h, w) for a segmenter that takes images of any size.

    Raises:
        ValueError: if it was trained on other cameras than the workbench has, or on images of several sizes.
    """
    images = _images(config)
    if not images:
        return CameraSetup(rgb=False)
    sizes = sorted(
        {
            _model_size(path, default) if _is_nominal(name, shape) else shape[1:]
            for name, shape in images.items()
        }
    )
    if len(sizes) > 1:
        raise ValueError(
            f"--policy.path: the policy was trained on images of several sizes {sizes}, expected one."
        )
    cameras, kinds = zip(*map(_parts, images), strict=True)
    rendered = (kind in kinds for kind in ("rgb", "seg", "depth"))
    height, width = sizes[0]
    return CameraSetup(tuple(dict.fromkeys(cameras)), height, width, *rendered).check("--policy.path: ")


def fingerprint(path: Path) -> str:
    """Return the beginning of the SHA-256 of a checkpoint's weights and statistics."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:12]


def _images(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape (C, H, W) of each of a policy's images by name."""
    return {
        key.removeprefix(f"{OBS_IMAGES}."): tuple(feature.shape)
        for key, feature in (config.input_features or {}).items()
        if key.startswith(f"{OBS_IMAGES}.") and not key.startswith(f"{OBS_IMAGES}.empty_camera")
    }


def _is_nominal(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether an image's declared shape says nothing, see the module."""
    return _parts(name)[1] == "rgb" and shape[0] == 1


def _model_size(path: Path, default: tuple[int, int] | None) -> tuple[int, ...]:
    """Return the size (h, w) of the images that the perception model of a checkpoint was trained on."""
    steps = json.loads((path / "policy_preprocessor.json").read_text())["steps"]
    sizes = [(step["config"].get("identity") or {}).get("input_size") or () for step in steps]
    size = next((size for size in sizes if len(size) == 2), default)  # others take images of any size
    if size is None:
        raise ValueError(
            f"--policy.path: found no size of images in {path}, expected a policy that was trained on RGB "
            "images, or whose segmenter has an input size."
        )
    return tuple(size)


def _parts(name: str) -> tuple[str, str]:
    """Split the name of an image into camera and kind: rgb, seg or depth."""
    camera, _, kind = name.rpartition("_")
    return (camera, kind) if kind in ("seg", "depth") else (name, "rgb")
