# SPDX-License-Identifier: Apache-2.0
"""An exponential moving average of a model's weights, to act with."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of a model that follows it, by `update_parameters` after each optimizer step; no gradients reach it.

    Args:
        model: what is trained.
        decay: per step, once the training is long; before, the average moves faster. Without that a training of a few
            hundred steps would act with weights close to its initial ones.
    """
    average = AveragedModel(model, multi_avg_fn=partial(_average, decay))
    average.requires_grad_(False)
    return average


def _average(decay: float, averaged: Any, current: Any, n_averaged: Tensor | int) -> None:
    n = int(n_averaged)
    get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, n_averaged)
