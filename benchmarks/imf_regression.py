# SPDX-License-Identifier: Apache-2.0
"""LeRobot's training with imf's network as a regressor: the arm of `benchmarks.imf` that has no flow.

    python -m benchmarks.imf_regression [options of lerobot-train for imf]

Noise is zero, times are r = 0 and t = 1, and the one step of inference is learned directly: actions = -u(0, 0, 1). The
checkpoint is one of imf; `benchmarks.imf` lets it act from zero noise.
"""

from typing import Any

import torch
from torch import Tensor

from lerobot_policy_imf import modeling_imf
from lerobot_policy_imf.objectives import Field

from . import train_in_memory


def regression_error(
    objective: str,
    field: Field,
    actions: Tensor,
    noise: Tensor,
    r: Tensor,
    t: Tensor,
    condition: Tensor,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """In the place of `velocity_error`, and therefore with its arguments."""
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    return -field(torch.zeros_like(actions), zero, one, condition) - actions, actions[:0]


def install() -> None:
    """Let imf's training be regression from now on."""
    module: Any = modeling_imf
    module.velocity_error = regression_error
    # What is logged of the derivative has nothing to be made of.
    module.IMFPolicy._logs = lambda self, losses, same, slope: {"loss": losses.mean().item()}


def main() -> None:
    install()
    train_in_memory.main()


if __name__ == "__main__":
    main()
