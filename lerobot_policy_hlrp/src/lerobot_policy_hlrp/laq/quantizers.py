# SPDX-License-Identifier: Apache-2.0
"""Quantise the change between two frames to one of few codes, and pass gradients around the choice.

`nsvq` has a codebook. In training it adds noise of the size of the quantisation error instead of quantising
(noise substitution, Vali and Bäckström, 2022), and moves unused entries to current inputs. `fsq` has no
codebook that could collapse: it rounds each dimension to one of a few levels (Mentzer et al., 2023).
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

QUANTIZERS = ("fsq", "nsvq")


class Quantized(NamedTuple):
    """A quantised change between frames.

    Attributes:
        passed: (B, S, D), input of the decoder; carries the gradient.
        vectors: (B, S, D), vectors of the codes: what a policy predicts.
        codes: (B, S), numbers of the codes.
    """

    passed: Tensor
    vectors: Tensor
    codes: Tensor


class FSQ(nn.Module):
    """Finite scalar quantisation to some levels of each dimension; their product is the number of codes."""

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        import vector_quantize_pytorch

        self.dim = len(levels)
        self.rounding = vector_quantize_pytorch.FSQ(list(levels))
        self.codebook_size: int = self.rounding.codebook_size

    def forward(self, delta: Tensor) -> Quantized:
        """Quantise changes of any range, (B, S, D)."""
        vectors, codes = self.rounding(delta)
        return Quantized(vectors, vectors.detach(), codes.long())


class NSVQ(nn.Module):
    """Vector quantisation with noise substitution.

    Args:
        dim, codebook_size: of a code, and number of codes.
        replace_every: training calls after which rare entries are moved: those chosen less often than a
            hundredth of the mean.
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
        """Quantise changes, (B, S, D)."""
        # 1. nearest entry of the codebook: (B, S, D) -> (B, S)
        if self.training:
            self._move_rare_entries(delta.detach().flatten(0, 1).float())
        with torch.no_grad():
            codes = torch.cdist(delta.float(), self.codebook[None].float()).argmin(-1)
        vectors = self.codebook[codes]
        if not self.training:
            return Quantized(vectors, vectors.detach(), codes)
        self.chosen += torch.bincount(codes.flatten(), minlength=self.codebook_size)
        # 2. noise of the length of the error instead of the error itself: gradients reach input and codebook
        noise = torch.randn_like(delta)
        error = (delta - vectors).norm(dim=-1, keepdim=True)
        passed = delta + error / noise.norm(dim=-1, keepdim=True).clamp_min(1e-8) * noise
        return Quantized(passed, vectors.detach(), codes)

    @torch.no_grad()
    def _move_rare_entries(self, deltas: Tensor) -> None:
        """Move rare entries to current changes, (N, D), from time to time; all entries at the first call."""
        first = int(self.calls) == 0
        self.calls += 1
        if not first and int(self.calls) % self.replace_every:
            return
        distributed = dist.is_available() and dist.is_initialized()
        if distributed:
            dist.all_reduce(self.chosen)
        rare = self.chosen < 0.01 * self.chosen.sum() / self.codebook_size
        rare |= first
        picked = deltas[torch.randint(len(deltas), (int(rare.sum()),), device=deltas.device)]
        spread = deltas.std(0, correction=0)
        self.codebook[rare] = picked + 0.1 * spread * torch.randn_like(picked)
        if distributed:  # each process has picked from its own batch
            dist.broadcast(self.codebook, 0)
        self.chosen.zero_()


class Usage(nn.Module):
    """Running frequencies of the codes, and running mean and spread of their vectors."""

    MEMORY = 0.99  # weight of the past after each batch

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.zeros(codebook_size))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("square", torch.zeros(dim))
        self.frequency: Tensor
        self.mean: Tensor
        self.square: Tensor

    @torch.no_grad()
    def count(self, quantized: Quantized) -> None:
        """Add a batch."""
        counts = torch.bincount(quantized.codes.flatten(), minlength=len(self.frequency)).float()
        vectors = quantized.vectors.flatten(0, 1).float()
        weight = 1 - self.MEMORY if bool(self.frequency.sum() > 0) else 1.0
        self.frequency.lerp_(counts / counts.sum(), weight)
        self.mean.lerp_(vectors.mean(0), weight)
        self.square.lerp_(vectors.square().mean(0), weight)

    @property
    def std(self) -> Tensor:
        """Standard deviation of each dimension, (D,); 1 for constant ones."""
        variance = (self.square - self.mean.square()).clamp_min(0)
        return torch.where(variance > 1e-8, variance.sqrt(), torch.ones_like(variance))

    def standardised(self, vectors: Tensor) -> Tensor:
        """Return vectors with mean 0 and standard deviation 1, the targets of a flow."""
        return (vectors - self.mean) / self.std

    @property
    def used(self) -> float:
        """Share of the codes in use: chosen at least a tenth as often as under equal frequencies."""
        return float((self.frequency > 0.1 / len(self.frequency)).float().mean())

    @property
    def perplexity(self) -> float:
        """Number of equally frequent codes with the same entropy."""
        p = self.frequency / self.frequency.sum().clamp_min(1e-12)
        return float(torch.exp(-(p * p.clamp_min(1e-12).log()).sum()))
