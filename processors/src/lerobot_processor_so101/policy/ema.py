# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a model's weights, for inference."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return an averaged copy of a model; call its `update_parameters` after each optimizer step.

    The decay is that of a step late in training. The decay of early steps is smaller, so that a training of a
    few hundred steps does not run inference with weights close to the initial ones.
    """
    average = AveragedModel(model, multi_avg_fn=partial(_average, decay))
    average.requires_grad_(False)
    return average


class AveragedModelMixin:
    """Run inference with averaged weights of `model`; for a `PreTrainedPolicy` that sets both, before it."""

    model: nn.Module
    ema: AveragedModel | None

    def get_optim_params(self) -> list[nn.Parameter]:
        """Return the trainable parameters; frozen encoders and the averaged copy have none."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]  # type: ignore[attr-defined]

    def update(self) -> None:
        """Update the averaged weights; `lerobot-train` calls this after every optimizer step."""
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def _inference_model(self) -> Any:
        # The average is empty until the first update: in a new policy, or a checkpoint trained without it.
        return self.ema.module if self.ema is not None and self.ema.n_averaged > 0 else self.model


def _average(decay: float, averaged: Any, current: Any, n_averaged: Tensor | int) -> None:
    n = int(n_averaged)
    get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, n_averaged)
