# SPDX-License-Identifier: Apache-2.0
"""Frozen models whose output the latent action model can predict too. No checkpoint contains them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOWS = ("raft_small", "raft_large")
_FLOW_SIDE = 128  # smallest image of RAFT


class FeatureTeacher:
    """Patch features of any vision model of transformers, such as DINOv2.

    Args:
        name: folder or Hub id.
        grid: g; features are averaged to g x g.
    """

    def __init__(self, name: str, grid: int) -> None:
        import transformers

        hf: Any = transformers
        try:
            model = hf.AutoModel.from_pretrained(name)
        except OSError as error:
            raise ValueError(
                f"feature_model: found no model under {name!r}, expected a folder or a Hub id that can be "
                f"reached from here, or '' for none. ({str(error).splitlines()[0]})"
            ) from error
        self.model = getattr(model, "vision_model", model).eval().requires_grad_(False)
        processor = hf.AutoImageProcessor.from_pretrained(name)
        self.mean = torch.tensor(processor.image_mean)[:, None, None]
        self.std = torch.tensor(processor.image_std)[:, None, None]
        self.side: int = self.model.config.image_size
        self.patch: int = self.model.config.patch_size
        self.dim: int = self.model.config.hidden_size
        self.grid = grid

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Encode frames, (B, 3, H, W) in [0, 1] -> (B, g * g, C), each vector of mean 0 and variance 1."""
        self.model.to(frames.device)
        images = F.interpolate(frames, (self.side, self.side), mode="bilinear", antialias=True)
        images = (images - self.mean.to(frames)) / self.std.to(frames)
        side = self.side // self.patch
        hidden = self.model(pixel_values=images).last_hidden_state
        tokens = hidden[:, -side * side :]  # without class tokens
        planes = F.adaptive_avg_pool2d(tokens.mT.unflatten(2, (side, side)), self.grid)
        return F.layer_norm(planes.flatten(2).mT, (self.dim,))


class FlowTeacher:
    """Optical flow by torchvision's RAFT.

    Args:
        name: `raft_small` or `raft_large`.
        weights: file of its weights; empty to download those of torchvision once.
        grid: g; flow is averaged to g x g.
    """

    def __init__(self, name: str, weights: str, grid: int) -> None:
        from torchvision.models import optical_flow

        build = getattr(optical_flow, name)
        self.model: nn.Module = build() if weights else build(weights="DEFAULT")
        if weights:
            self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.model.eval().requires_grad_(False)
        self.grid = grid

    @torch.no_grad()
    def __call__(self, earlier: Tensor, later: Tensor) -> Tensor:
        """Return motion in widths and heights of the image, (B, 3, H, W) each in [0, 1] -> (B, g * g, 2)."""
        self.model.to(earlier.device)
        side = 8 * max(_FLOW_SIDE // 8, round(earlier.shape[-1] / 8))
        first, second = (
            2 * F.interpolate(frames, (side, side), mode="bilinear", antialias=True) - 1
            for frames in (earlier, later)
        )
        flow = self.model(first, second, num_flow_updates=4)[-1] / side
        return F.adaptive_avg_pool2d(flow, self.grid).flatten(2).mT
