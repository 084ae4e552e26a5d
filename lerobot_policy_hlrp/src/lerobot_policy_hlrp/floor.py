# SPDX-License-Identifier: Apache-2.0
"""The loss of a latent flow that has learned how often each code occurs, and nothing of when.

A loss below it is what has been learned; a loss above it, however much it has fallen, is nothing yet.
"""

import torch
from torch import Tensor


@torch.no_grad()
def unconditional_floor(vectors: Tensor, times: Tensor, seed: int = 0) -> float:
    """Expected squared error of the best velocity that knows x_t, t and how often codes occur, but no observation.

    With x_t = t n + (1 - t) z and velocity n - z, the best guess puts the mean of z given x_t in the place of z; what is
    left is the spread of z given x_t, divided by t. Each of the S parts is guessed from itself: of the whole, most
    combinations occur once, and knowing those would be remembering the sample.

    Args:
        vectors: (N, S, D), latent actions as they occur.
        times: (M,) of the flow, 1 is noise, as training draws them.
        seed: of the noise.

    Returns:
        The mean over S, D and times.
    """
    generator = torch.Generator().manual_seed(seed)
    floors = [_floor_of_part(part.double(), times.double()[:, None], generator) for part in vectors.unbind(1)]
    return sum(floors) / len(floors)


def _floor_of_part(vectors: Tensor, t: Tensor, generator: torch.Generator) -> float:
    """That of one part, (N, D), at times (M, 1)."""
    kinds, counts = vectors.unique(dim=0, return_counts=True)
    z = kinds[torch.multinomial(counts.double(), len(t), replacement=True, generator=generator)]
    x = t * torch.randn(z.shape, generator=generator, dtype=z.dtype) + (1 - t) * z
    # |x - (1 - t) z|² without |x|², which all kinds have in common.
    far = (1 - t).square() * kinds.square().sum(1) - 2 * (1 - t) * (x @ kinds.mT)
    logits = counts.double().log() - far / (2 * t.square())
    error = (z - logits.softmax(1) @ kinds) / t
    return float(error.square().mean())
