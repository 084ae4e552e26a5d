# SPDX-License-Identifier: Apache-2.0
"""Means over what counts, the same on one process as on several."""

import torch.distributed as dist
from torch import Tensor


def counted_mean(errors: Tensor, counts: Tensor) -> Tensor:
    """Weighted mean; 0, with gradients of 0, if nothing counts.

    Batches differ in how much of them counts, so that a mean of the means of processes would weigh them wrongly. Here the
    sum is divided by the mean count of all processes: averaged over them, as distributed training averages gradients, it
    is the mean of the joint batch.

    Args:
        errors: (B, ...).
        counts: weights or flags, broadcast to the errors.
    """
    weights = counts.to(errors.dtype).expand_as(errors)
    count = weights.sum()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return (errors * weights).sum() / count.clamp_min(1e-6)
