# SPDX-License-Identifier: Apache-2.0
"""Small latent action models and what they look at."""

from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_policy_hlrp import HLRPLAQConfig

LAQ: dict[str, Any] = {
    "gap_s": 0.1,
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "heads": 2,
    "spatial_layers": 1,
    "temporal_layers": 1,
    "decoder_layers": 1,
    "device": "cpu",
    "push_to_hub": False,
}


def laq_config(**changes: Any) -> HLRPLAQConfig:
    """A small model of a camera of 48x64 pixels."""
    picture = PolicyFeature(FeatureType.VISUAL, (3, 48, 64))
    return HLRPLAQConfig(**{"input_features": {"observation.images.top": picture}, **LAQ, **changes})


def pair(batch: int = 3, seed: int = 0) -> dict[str, Any]:
    """Two frames of a camera."""
    generator = torch.Generator().manual_seed(seed)
    return {"observation.images.top": torch.rand(batch, 2, 3, 48, 64, generator=generator)}
