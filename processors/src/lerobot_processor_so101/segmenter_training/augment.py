# SPDX-License-Identifier: Apache-2.0
"""Augmentations of image, mask and disparity together."""

from typing import Literal, get_args

from torchvision.transforms import v2

from .lighting import lighting

Augmentation = Literal["full", "upright", "lighting", "flips", "none"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)


def make_augmentation(name: str, size: tuple[int, int]) -> v2.Transform | None:
    """Build the augmentation of training samples.

    | name      | transforms                                                                    |
    |-----------|-------------------------------------------------------------------------------|
    | `full`    | crop, flips, rotation, colour jitter and blur, as pick101 at 640x480          |
    | `upright` | the same without flips                                                        |
    | `lighting`| `upright`, and shadows, glare, exposure, noise and compression                |
    | `flips`   | flips, as pick101 at 84x84                                                    |
    | `none`    | none                                                                          |

    A camera that is fixed to the gripper or the table never records a mirrored arm, and the two fingers
    differ mostly in their side: a mirrored static finger resembles a moving one. Flips pay off for few
    images, such as pick101's 139; prefer `upright` for many.

    The crop's aspect ratio is relative to the frame's; in pick101 it is absolute, so that crops of 640x480
    are nearly square and then distorted. Interpolation is bilinear for images, nearest for masks and
    disparity. Pixels from outside the frame are black, class 0 and far. Random numbers are PyTorch's, so that
    workers differ.

    Args:
        name: one of `AUGMENTATIONS`.
        size: (height, width) of the samples.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"--augment: found {name!r}, expected one of {', '.join(AUGMENTATIONS)}.")
    aspect = size[1] / size[0]
    crop = v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(0.9 * aspect, 1.1 * aspect))
    flips = [v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.5)]
    rotation = v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR)
    others = [
        v2.RandomApply([rotation], 0.5),
        v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
        v2.RandomApply([v2.GaussianBlur(5, sigma=(0.1, 2.0))], 0.3),
    ]
    transforms: dict[str, list[v2.Transform]] = {
        "full": [v2.RandomApply([crop], 0.7), *flips, *others],
        "upright": [v2.RandomApply([crop], 0.7), *others],
        "lighting": [v2.RandomApply([crop], 0.7), *others, *lighting()],
        "flips": flips,
        "none": [],
    }
    return v2.Compose(transforms[name]) if transforms[name] else None
