# SPDX-License-Identifier: Apache-2.0
"""Light and camera as augmentations: cast shadows, glare, and what a cheap webcam adds.

They change images only. Random numbers are PyTorch's, so that workers differ.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional


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
    """Darken a band to 30 to 75 %, as an arm's shadow does.

    Its place, direction and width are random, and its edges sharp to soft.
    """

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
