# SPDX-License-Identifier: Apache-2.0
"""Small latent action models, small policies, and batches for them."""

from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_policy_hlrp import HLRPConfig, HLRPLAQConfig
from lerobot_policy_hlrp.modeling_hlrp_laq import HLRPLAQPolicy
from lerobot_policy_segvla.small_vlm import save_small_vlm
from tests.tiny import robot_features, tiny_smolvla

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
    """Return the configuration of a small model for a camera of 48x64 pixels."""
    image = PolicyFeature(FeatureType.VISUAL, (3, 48, 64))
    return HLRPLAQConfig(**{"input_features": {"observation.images.top": image}, **LAQ, **changes})


def pair(batch: int = 3, seed: int = 0) -> dict[str, Any]:
    """Return a batch with two frames of a camera."""
    generator = torch.Generator().manual_seed(seed)
    return {"observation.images.top": torch.rand(batch, 2, 3, 48, 64, generator=generator)}


@pytest.fixture(scope="session")
def vlm(tmp_path_factory) -> str:
    return save_small_vlm(tmp_path_factory.mktemp("vlm"), ["Lift the cube."])


@pytest.fixture(scope="session")
def laq(tmp_path_factory) -> str:
    """Folder of a latent action model after one batch, which sets the statistics of its codes."""
    torch.manual_seed(0)
    policy = HLRPLAQPolicy(laq_config())
    policy(pair(8))
    folder = tmp_path_factory.mktemp("laq")
    policy.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def small(vlm) -> dict[str, Any]:
    """Fields that make hlrp and SmolVLA tiny."""
    return tiny_smolvla(vlm)


@pytest.fixture
def hlrp_config(small):
    def make(**changes: Any) -> HLRPConfig:
        return HLRPConfig(**{**robot_features(), **small, "gap_s": 0.1, "pooled_width": 32, **changes})

    return make


def training_batch(batch: int = 3, frames: int = 2, seed: int = 0) -> dict[str, Any]:
    """Return a preprocessed training batch: every observation has a time axis."""
    generator = torch.Generator().manual_seed(seed)
    images = {
        f"observation.images.{camera}": torch.rand(batch, frames, 3, 48, 64, generator=generator)
        for camera in ("top", "wrist")
    }
    return {
        **images,
        "observation.state": torch.randn(batch, frames, 6, generator=generator),
        "observation.language.tokens": torch.randint(5, 60, (batch, 5), generator=generator),
        "observation.language.attention_mask": torch.ones(batch, 5, dtype=torch.bool),
        "action": torch.randn(batch, 6, 6, generator=generator),
        "action_is_pad": torch.zeros(batch, 6, dtype=torch.bool),
        "episode_index": torch.arange(batch),
        "index": torch.arange(batch),
    }
