# SPDX-License-Identifier: Apache-2.0
"""Augmentations of seed 001, on picture, mask and disparity together."""

from typing import Literal, get_args

from torchvision.transforms import v2

Augmentation = Literal["full", "upright", "flips", "none"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)


def make_augmentation(name: str, size: tuple[int, int]) -> v2.Transform | None:
    """Build the augmentation of training samples.

    | name      | what                                                                          |
    |-----------|-------------------------------------------------------------------------------|
    | `full`    | crop, flips, rotation, colour jitter and blur: the seed's, for 640x480        |
    | `upright` | the same without flips                                                        |
    | `flips`   | flips only: the seed's, for 84x84                                             |
    | `none`    | nothing                                                                       |

    A camera that is fixed to the gripper or the table never sees a mirrored arm, and the two fingers differ most
    in the side they are on: mirrored, a static finger looks like a moving one. Flips are worth their price where
    pictures are few, as in the seed's 139; prefer `upright` where they are many.

    The crop's ratio is relative to the shape of the frame, where the original's was absolute (a crop of 640x480 was
    nearly square, and was then stretched). Interpolation is bilinear for pictures, nearest for masks and disparity;
    what comes into view is black, class 0 and far. Random numbers are PyTorch's, so that workers differ.

    Args:
        name: one of `AUGMENTATIONS`.
        size: (height, width) of the samples.

    Raises:
        ValueError: an unknown name.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"--augment: found {name!r}, expected one of {', '.join(AUGMENTATIONS)}.")
    aspect = size[1] / size[0]
    bilinear = v2.InterpolationMode.BILINEAR
    crop = v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(0.9 * aspect, 1.1 * aspect))
    flips = [v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.5)]
    rotation = v2.RandomRotation(15, interpolation=bilinear)
    rest = [
        v2.RandomApply([rotation], 0.5),
        v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
        v2.RandomApply([v2.GaussianBlur(5, sigma=(0.1, 2.0))], 0.3),
    ]
    steps: dict[str, list[v2.Transform]] = {
        "full": [v2.RandomApply([crop], 0.7), *flips, *rest],
        "upright": [v2.RandomApply([crop], 0.7), *rest],
        "flips": flips,
        "none": [],
    }
    return v2.Compose(steps[name]) if steps[name] else None
