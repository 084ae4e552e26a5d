# SPDX-License-Identifier: Apache-2.0
"""Trainings of the baselines of `benchmarks.learning.imf` that stock commands do not have.

    python -m benchmarks.learning.imf_baselines regression [options of lerobot-train for imf]
    python -m benchmarks.learning.imf_baselines diffusion [options of lerobot-train for diffusion]

`regression` is imf's network without a flow: noise is zero, times are r = 0 and t = 1, and the one step of
inference is learned directly, actions = -u(0, 0, 1). The checkpoint is one of imf; `benchmarks.learning.imf`
runs it from zero noise.

`diffusion` is LeRobot's with imf's projectors of views before its network. Features of the views come as the
environment's state, one view after the other. LeRobot would condition the U-Net on them through one linear
layer; here each view goes through the same layers as in imf, trained with the U-Net.
"""

import copy
import sys

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.diffusion import modeling_diffusion
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.scripts import lerobot_train
from lerobot.utils.constants import OBS_ENV_STATE
from torch import Tensor, nn

from lerobot_policy_imf import modeling_imf
from lerobot_policy_imf.modeling_imf import ViewProjector
from lerobot_policy_imf.objectives import Field

from ..lib.small_siglip import GRID

VIEWS, OUT = 2, 96
_Original = modeling_diffusion.DiffusionModel


def regression_error(
    objective: str, field: Field, actions: Tensor, *given: Tensor, derive: bool
) -> tuple[Tensor, Tensor]:
    """Replace imf's `velocity_error`, with its arguments."""
    _, _, t, condition = given
    predicted = -field(torch.zeros_like(actions), torch.zeros_like(t), torch.ones_like(t), condition)
    return predicted - actions, actions[:0]


def install_regression() -> None:
    """Turn imf's training into regression."""
    modeling_imf.velocity_error = regression_error
    # There is no derivative to log.
    modeling_imf.IMFPolicy._logs = lambda self, losses, same, slope: {"loss": losses.mean().item()}


class Projecting(_Original):
    """LeRobot's network, behind projectors."""

    def __init__(self, config: DiffusionConfig) -> None:
        size = config.input_features[OBS_ENV_STATE].shape[0] // VIEWS
        projected = copy.deepcopy(config)
        projected.input_features[OBS_ENV_STATE] = PolicyFeature(FeatureType.ENV, (VIEWS * OUT,))
        super().__init__(projected)
        self.views = nn.ModuleList(ViewProjector(size, GRID**2, OUT) for _ in range(VIEWS))

    def _prepare_global_conditioning(self, batch: dict[str, Tensor]) -> Tensor:
        views = batch[OBS_ENV_STATE].chunk(VIEWS, -1)
        projected = [project(view) for project, view in zip(self.views, views, strict=True)]
        return super()._prepare_global_conditioning({**batch, OBS_ENV_STATE: torch.cat(projected, -1)})


def make(config: DiffusionConfig) -> modeling_diffusion.DiffusionModel:
    """Build the network of a configuration; LeRobot's own where it reads images."""
    return Projecting(config) if OBS_ENV_STATE in config.input_features else _Original(config)


def install_diffusion() -> None:
    """Let LeRobot's diffusion build this network."""
    modeling_diffusion.DiffusionModel = make


def main() -> None:
    {"regression": install_regression, "diffusion": install_diffusion}[sys.argv.pop(1)]()
    lerobot_train.main()


if __name__ == "__main__":
    main()
