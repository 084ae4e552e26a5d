# SPDX-License-Identifier: Apache-2.0
"""A weighted mean that is the same on one process as on several."""

import torch.distributed as dist
from torch import Tensor


def weighted_mean(errors: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean; 0, with gradients of 0, if all weights are 0.

    Batches differ in their sum of weights, so a mean of the processes' means would weigh samples unevenly.
    The sum is divided by the mean weight of all processes instead. Averaged over processes, as distributed
    training averages gradients, it is the mean over the joint batch.

    Args:
        errors: (B, ...).
        weights: numbers or flags, broadcast to the errors.
    """
    weights = weights.to(errors.dtype).expand_as(errors)
    total = weights.sum()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        total = total / dist.get_world_size()
    return (errors * weights).sum() / total.clamp_min(1e-6)
