# SPDX-License-Identifier: Apache-2.0
"""LeRobot's diffusion with imf's projectors of views before its network: the arm of `benchmarks.imf` it is held against.

    python -m benchmarks.imf_diffusion [options of lerobot-train for diffusion]

Features of the views come as the environment's state, one view after the other. As they are, they would condition the U-Net
through one linear layer; here each view is read as imf reads it, by layers that learn with the U-Net. The rest is LeRobot's.
"""

import copy
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.diffusion import modeling_diffusion
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.utils.constants import OBS_ENV_STATE
from torch import Tensor, nn

from lerobot_policy_imf.modeling_imf import ViewProjector

from . import train_in_memory
from .small_siglip import GRID

VIEWS, OUT = 2, 96
_Original = modeling_diffusion.DiffusionModel


class Projecting(_Original):
    """The network, behind projectors."""

    def __init__(self, config: DiffusionConfig) -> None:
        assert config.input_features is not None
        seen = config.input_features[OBS_ENV_STATE].shape[0] // VIEWS
        projected = copy.deepcopy(config)
        features = projected.input_features
        assert features is not None
        features[OBS_ENV_STATE] = PolicyFeature(FeatureType.ENV, (VIEWS * OUT,))
        super().__init__(projected)
        self.views = nn.ModuleList(ViewProjector(seen, GRID**2, OUT) for _ in range(VIEWS))

    def _prepare_global_conditioning(self, batch: dict[str, Tensor]) -> Tensor:
        views = batch[OBS_ENV_STATE].chunk(VIEWS, -1)
        read = [project(view) for project, view in zip(self.views, views, strict=True)]
        return super()._prepare_global_conditioning({**batch, OBS_ENV_STATE: torch.cat(read, -1)})


def make(config: DiffusionConfig) -> modeling_diffusion.DiffusionModel:
    """The network of a configuration; LeRobot's own where it is given pictures."""
    seen = OBS_ENV_STATE in (config.input_features or {})
    return Projecting(config) if seen else _Original(config)


def install() -> None:
    """Let LeRobot's diffusion build this network."""
    module: Any = modeling_diffusion
    module.DiffusionModel = make


def main() -> None:
    install()
    train_in_memory.main()


if __name__ == "__main__":
    main()
