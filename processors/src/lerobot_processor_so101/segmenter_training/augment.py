# SPDX-License-Identifier: Apache-2.0
"""Augmentations of image, mask and disparity together; light and camera change images only.

Random numbers are PyTorch's, so that workers differ.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

Augmentation = Literal["full", "upright", "lighting", "flips", "none"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)


def make_augmentation(name: str, size: tuple[int, int]) -> v2.Transform:
    """Build the augmentation of training samples.

    | name      | transforms                                                                    |
    |-----------|-------------------------------------------------------------------------------|
    | `full`    | crop, flips, rotation, colour jitter and blur, as pick101 at 640x480          |
    | `upright` | the same without flips                                                        |
    | `lighting`| `upright` with less hue, and shadows, glare, exposure, noise and compression  |
    | `flips`   | flips, as pick101 at 84x84                                                    |
    | `none`    | none                                                                          |

    A camera that is fixed to the gripper or the table never records a mirrored arm, and the two fingers
    differ mostly in their side: a mirrored static finger resembles a moving one. Flips pay off for few
    images, such as pick101's 139; prefer `upright` for many.

    pick101 shifts the hue by up to 36 degrees, which makes a red cube as orange as a yellow one. With
    `lighting` it is 7 degrees, so that classes may be named by their colour.

    The crop's aspect ratio is relative to the frame's; in pick101 it is absolute, so that crops of 640x480
    are nearly square and then distorted. Interpolation is bilinear for images, nearest for masks and
    disparity. Pixels from outside the frame are black, class 0 and far.

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
    crop = v2.RandomApply([crop], 0.7)
    flips = [v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.5)]
    transforms: dict[str, list[v2.Transform]] = {
        "full": [crop, *flips, *_camera(hue=0.1)],
        "upright": [crop, *_camera(hue=0.1)],
        "lighting": [crop, *_camera(hue=0.02), *lighting()],
        "flips": flips,
        "none": [v2.Identity()],
    }
    return v2.Compose(transforms[name])


def _camera(hue: float) -> list[v2.Transform]:
    """Return transforms of a camera: rotation, colours with a change of hue [turns], and blur."""
    rotation = v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR)
    return [
        v2.RandomApply([rotation], 0.5),
        v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=hue),
        v2.RandomApply([v2.GaussianBlur(5, sigma=(0.1, 2.0))], 0.3),
    ]


class _Light(v2.Transform):
    """Multiply an image by one map and add another, both (H, W); masks stay."""

    _transformed_types = (tv_tensors.Image,)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = functional.get_size(flat_inputs[0])
        rows, columns = torch.meshgrid(
            torch.linspace(0, height / width, height), torch.linspace(0, 1, width), indexing="ij"
        )
        return {"maps": self.maps(columns, rows)}

    def maps(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Draw factor and offset (0..1) of every pixel from its coordinates, in units of the width."""
        raise NotImplementedError

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        factor, offset = params["maps"]
        scaled = functional.to_dtype(inpt, torch.float32, scale=True) * factor + offset
        return functional.to_dtype(tv_tensors.wrap(scaled.clamp(0, 1), like=inpt), inpt.dtype, scale=True)


class CastShadow(_Light):
    """Darken a random band to 30 to 75 %, with sharp to soft edges, as an arm's shadow does."""

    def maps(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        angle, centre_x, centre_y, darkness, width, sharpness = torch.rand(6)
        across = (x - centre_x) * torch.cos(6.28 * angle) + (y - centre_y * y.max()) * torch.sin(6.28 * angle)
        edges = 10 ** (1 + 1.5 * sharpness)  # per width of the image: soft to sharp
        half = 0.03 + 0.3 * width**2
        inside = torch.sigmoid(edges * (half - across)) * torch.sigmoid(edges * (half + across))
        return 1 - (0.25 + 0.45 * darkness) * inside, torch.zeros_like(x)


class Glare(_Light):
    """Add a bright spot, as of a lamp on a glossy table."""

    def maps(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        centre_x, centre_y, size, strength, stretch = torch.rand(5)
        radius = 0.03 + 0.15 * size
        dx, dy = (x - centre_x) / (1 + stretch), y - centre_y * y.max()
        spot = torch.exp(-(dx**2 + dy**2) / (2 * radius**2))
        return torch.ones_like(x), (0.2 + 0.45 * strength) * spot


class Exposure(_Light):
    """Expose too little or too long by up to one stop."""

    def maps(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return 2 ** (2 * torch.rand(()) - 1) * torch.ones_like(x), torch.zeros_like(x)


def lighting() -> list[v2.Transform]:
    """Return transforms for uint8 images: shadows, glare, exposure, noise and compression."""
    to_float, to_bytes = (v2.ToDtype(dtype, scale=True) for dtype in (torch.float32, torch.uint8))
    noise = [to_float, v2.GaussianNoise(sigma=0.03), to_bytes]
    return [
        v2.RandomApply([CastShadow()], 0.5),
        v2.RandomApply([CastShadow()], 0.25),
        v2.RandomApply([Glare()], 0.2),
        v2.RandomApply([Exposure()], 0.3),
        v2.RandomApply(noise, 0.3),
        v2.RandomApply([v2.JPEG((40, 95))], 0.3),
    ]
