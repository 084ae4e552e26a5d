# SPDX-License-Identifier: Apache-2.0
"""A tiny encoder, policies with it, and preprocessed batches."""

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_policy_imf import IMFConfig
from tests.tiny import tiny_siglip

CAMERAS = ("front", "top", "wrist")
SIDE = 32  # of the encoder's images [pixels]
SMALL = {"n_emb": 16, "n_layer": 2, "n_head": 2, "cond_dim": 12, "per_view_output_dim": 4, "horizon": 6}
SMALL |= {"flow_matching_steps": 0}  # du/dt from the first step


@pytest.fixture(scope="session")
def siglip(tmp_path_factory) -> str:
    return tiny_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture
def config(siglip):
    def make(inputs: dict | None = None, **changes) -> IMFConfig:
        image = PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE))
        images = {f"observation.images.{camera}": image for camera in CAMERAS}
        return IMFConfig(
            input_features={
                "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
                **(images if inputs is None else inputs),
            },
            output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
            vision_model_name=siglip,
            device="cpu",
            push_to_hub=False,
            **{**SMALL, "n_action_steps": 3, **changes},
        )

    return make


@pytest.fixture
def policy(config):
    from lerobot_policy_imf.modeling_imf import IMFPolicy

    def make(*args, **changes) -> IMFPolicy:
        torch.manual_seed(0)
        made = IMFPolicy(config(*args, **changes))
        torch.nn.init.normal_(made.model.head.out.weight)  # actions that differ visibly
        return made

    return make


def observation(batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the observation of one control period."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, 3, SIDE, SIDE)
    images = {f"observation.images.{camera}": torch.rand(size, generator=generator) for camera in CAMERAS}
    return {"observation.state": torch.rand(batch, 6, generator=generator) * 2 - 1, **images}


def training_batch(batch: int = 4, steps: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a preprocessed training batch."""
    frames = [observation(batch, seed + step) for step in range(steps)]
    generator = torch.Generator().manual_seed(seed)
    return {
        **{key: torch.stack([frame[key] for frame in frames], 1) for key in frames[0]},
        "action": torch.rand(batch, SMALL["horizon"], 6, generator=generator) * 2 - 1,
        "action_is_pad": torch.zeros(batch, SMALL["horizon"], dtype=torch.bool),
    }
