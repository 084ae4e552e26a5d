# SPDX-License-Identifier: Apache-2.0
"""The floor of the latent loss: that of a flow which knows how often each code occurs, but no observation.

A flow with a loss above the floor has learned nothing from observations yet. If the parts of a latent action
depend on each other, a flow that reads all of them can go below the floor without observations.
"""

import torch
from torch import Tensor


@torch.no_grad()
def unconditional_floor(vectors: Tensor, times: Tensor) -> float:
    """Return the expected squared error of the best velocity that knows x_t, t and the frequency of codes.

    With x_t = t n + (1 - t) z and velocity n - z, the best prediction replaces z by its mean given x_t. The
    error that remains is the spread of z given x_t, divided by t. Each of the S parts is predicted from
    itself alone: most combinations of all parts occur once in a sample, and knowing those would be memorising
    it.

    Args:
        vectors: (N, S, D), latent actions as they occur.
        times: (M,) of the flow, 1 is noise, as training draws them.

    Returns:
        The mean over S, D and times.
    """
    generator = torch.Generator().manual_seed(0)
    floors = [_floor_of_part(part.double(), times.double()[:, None], generator) for part in vectors.unbind(1)]
    return sum(floors) / len(floors)


def _floor_of_part(vectors: Tensor, t: Tensor, generator: torch.Generator) -> float:
    # 1. draw a code as often as it occurs, and its noisy value: z, x_t, (M, D) each
    kinds, counts = vectors.unique(dim=0, return_counts=True)  # (K, D), (K,)
    z = kinds[torch.multinomial(counts.double(), len(t), replacement=True, generator=generator)]
    x = t * torch.randn(z.shape, generator=generator, dtype=z.dtype) + (1 - t) * z
    # 2. probability of each code given x_t, (M, K): |x - (1 - t) z|² without |x|², equal for all codes
    distance = (1 - t).square() * kinds.square().sum(1) - 2 * (1 - t) * (x @ kinds.mT)
    logits = counts.double().log() - distance / (2 * t.square())
    # 3. error of the mean given x_t
    error = (z - logits.softmax(1) @ kinds) / t
    return float(error.square().mean())
