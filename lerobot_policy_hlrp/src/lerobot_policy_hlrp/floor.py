# SPDX-License-Identifier: Apache-2.0
"""The loss of a latent flow that has learned how often each latent action occurs, and nothing of when.

A loss below it is what the observation is worth; a loss above it, however much it has fallen, is nothing yet.
"""

import torch
from torch import Tensor

_VECTORS = 4096  # different ones at most, so that a large dataset does not take long


@torch.no_grad()
def unconditional_floor(vectors: Tensor, times: Tensor, seed: int = 0) -> float:
    """Expected squared error of the best velocity that knows x_t and t, but no observation.

    With x_t = t n + (1 - t) z and velocity n - z, the best guess puts the mean of z given x_t in the place of z; what is
    left is the spread of z given x_t, divided by t.

    Args:
        vectors: (N, S, D), latent actions as they occur.
        times: (M,) of the flow, 1 is noise, as training draws them.
        seed: of the noise.

    Returns:
        The mean over S, D and times.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = vectors.flatten(1).double()
    kinds, counts = flat.unique(dim=0, return_counts=True)
    if len(kinds) > _VECTORS:
        kept = counts.topk(_VECTORS).indices
        kinds, counts = kinds[kept], counts[kept]
    drawn = torch.multinomial(counts.double(), len(times), replacement=True, generator=generator)
    z, t = kinds[drawn], times.double()[:, None]
    x = t * torch.randn(z.shape, generator=generator, dtype=z.dtype) + (1 - t) * z
    logits = counts.double().log() - _squared_distances(x, kinds, t) / (2 * t.square())
    posterior = logits.softmax(1)
    error = (z - posterior @ kinds) / t
    return float(error.square().mean())


def _squared_distances(x: Tensor, kinds: Tensor, t: Tensor) -> Tensor:
    """|x - (1 - t) z|² for all kinds of z, (M, K)."""
    away = 1 - t
    return x.square().sum(1, keepdim=True) - 2 * away * (x @ kinds.mT) + away.square() * kinds.square().sum(1)
