# SPDX-License-Identifier: Apache-2.0
"""From the difference of two frames to one of few codes, and how its gradient gets past the choice.

`nsvq` is the seed's: a codebook, and in training noise of the size of the error in the error's place (Vali and Bäckström,
2022). Entries that nothing chooses are put where something is. `fsq` has no codebook to collapse: each number is rounded
to one of a few levels (Mentzer et al., 2023), by `vector-quantize-pytorch`.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

QUANTIZERS = ("fsq", "nsvq")


class Quantized(NamedTuple):
    """A difference of frames after the choice.

    Attributes:
        passed: (B, S, D), what the decoder is given; carries the gradient.
        vectors: (B, S, D), the codes as vectors: what a policy predicts.
        codes: (B, S), their numbers.
    """

    passed: Tensor
    vectors: Tensor
    codes: Tensor


class FSQ(nn.Module):
    """Finite scalar quantisation.

    Args:
        levels: of each number; their product is the number of codes.
    """

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        import vector_quantize_pytorch

        self.dim = len(levels)
        self.rounding = vector_quantize_pytorch.FSQ(list(levels))
        self.codebook_size: int = self.rounding.codebook_size

    def forward(self, delta: Tensor) -> Quantized:
        """Choose; see `Quantized`. (B, S, D) of any range."""
        vectors, codes = self.rounding(delta)
        return Quantized(vectors, vectors.detach(), codes.long())


class NSVQ(nn.Module):
    """Vector quantisation with noise substitution.

    Args:
        dim: of a code.
        codebook_size: number of codes.
        replace_every: calls in training after which entries that were chosen less than a hundredth of the mean number
            of times are moved.
    """

    def __init__(self, dim: int, codebook_size: int, replace_every: int = 100) -> None:
        super().__init__()
        self.dim, self.codebook_size, self.replace_every = dim, codebook_size, replace_every
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self.register_buffer("chosen", torch.zeros(codebook_size), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.chosen: Tensor
        self.calls: Tensor

    def forward(self, delta: Tensor) -> Quantized:
        """Choose; see `Quantized`. (B, S, D)."""
        if self.training:
            self._replace(delta.detach().flatten(0, 1).float())
        with torch.no_grad():
            codes = torch.cdist(delta.float(), self.codebook[None].float()).argmin(-1)
        vectors = self.codebook[codes]
        if not self.training:
            return Quantized(vectors, vectors.detach(), codes)
        self.chosen += torch.bincount(codes.flatten(), minlength=self.codebook_size)
        noise = torch.randn_like(delta)
        error = (delta - vectors).norm(dim=-1, keepdim=True)
        passed = delta + error / noise.norm(dim=-1, keepdim=True).clamp_min(1e-8) * noise
        return Quantized(passed, vectors.detach(), codes)

    @torch.no_grad()
    def _replace(self, deltas: Tensor) -> None:
        """Move all entries at the first call, and later those that are hardly chosen, to where frames differ now."""
        first = int(self.calls) == 0
        self.calls += 1
        if not first and int(self.calls) % self.replace_every:
            return
        shared = dist.is_available() and dist.is_initialized()
        if shared:
            dist.all_reduce(self.chosen)
        idle = self.chosen < 0.01 * self.chosen.sum() / self.codebook_size
        idle |= first
        count = int(idle.sum())
        picked = deltas[torch.randint(len(deltas), (count,), device=deltas.device)]
        spread = deltas.std(0, correction=0)
        self.codebook[idle] = picked + 0.1 * spread * torch.randn_like(picked)
        if shared:  # each process has picked among its own
            dist.broadcast(self.codebook, 0)
        self.chosen.zero_()


class Usage(nn.Module):
    """How often each code has been chosen lately, and the mean and spread of their vectors.

    Args:
        codebook_size: number of codes.
        dim: of a code.
        memory: share of the past that is left after a batch.
    """

    def __init__(self, codebook_size: int, dim: int, memory: float = 0.99) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("frequency", torch.zeros(codebook_size))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("square", torch.zeros(dim))
        self.frequency: Tensor
        self.mean: Tensor
        self.square: Tensor

    @torch.no_grad()
    def count(self, quantized: Quantized) -> None:
        """Take a batch into account."""
        counts = torch.bincount(quantized.codes.flatten(), minlength=len(self.frequency)).float()
        vectors = quantized.vectors.flatten(0, 1).float()
        keep = self.memory if bool(self.frequency.sum() > 0) else 0.0
        for buffer, now in (
            (self.frequency, counts / counts.sum()),
            (self.mean, vectors.mean(0)),
            (self.square, vectors.square().mean(0)),
        ):
            buffer.lerp_(now, 1 - keep)

    @property
    def std(self) -> Tensor:
        """Standard deviation of each number of a vector, (D,); 1 where it never changes."""
        variance = (self.square - self.mean.square()).clamp_min(0)
        return torch.where(variance > 1e-8, variance.sqrt(), torch.ones_like(variance))

    def standardised(self, vectors: Tensor) -> Tensor:
        """Vectors of mean 0 and standard deviation 1, as a flow wants its targets."""
        return (vectors - self.mean) / self.std

    @property
    def used(self) -> float:
        """Share of the codes in use: chosen at least a tenth as often as if all were chosen alike."""
        return float((self.frequency > 0.1 / len(self.frequency)).float().mean())

    @property
    def perplexity(self) -> float:
        """Number of codes that, chosen alike, would be as hard to guess."""
        p = self.frequency / self.frequency.sum().clamp_min(1e-12)
        return float(torch.exp(-(p * p.clamp_min(1e-12).log()).sum()))
