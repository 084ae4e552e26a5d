# SPDX-License-Identifier: Apache-2.0
"""The transformer that maps a condition and noisy actions to velocities.

What is unusual about it:
- Everything is a token: the two times, the condition, the actions. There is no cross-attention and no
  adaptive norm; attention is bidirectional and only the action tokens are read out.
- With `residual="attnres_full"` there is no residual sum. Each sub-layer reads a weighted mean of all earlier
  outputs, with weights from one learned query per sub-layer (Attention Residuals, 2603.15031). Queries start
  at zero, which gives the plain mean. With `attnres_block` the sub-layers of a block are summed, and the
  queries read blocks.
- It supports forward differentiation: under `torch.func.jvp` attention must take its plain path, see
  `objectives.py`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESIDUALS = ("attnres_full", "attnres_block", "standard")
_EPS = 1e-6


class VelocityHead(nn.Module):
    """The average velocity u(z, r, t | condition).

    Args:
        action_dim: A, size of an action.
        horizon: T, actions in a chunk.
        cond_dim: size of a condition token.
        width, layers, heads: of the transformer.
        residual: one of `RESIDUALS`.
        blocks: number of blocks of "attnres_block".
        max_frequency: highest frequency of the time embedding [rad per unit]. High frequencies make du/dt
            explode.

    Raises:
        ValueError: see `check_sizes`.
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        width: int = 384,
        layers: int = 12,
        heads: int = 6,
        residual: str = "attnres_full",
        blocks: int = 8,
        max_frequency: float = 8.0,
    ) -> None:
        super().__init__()
        check_sizes(width, layers, heads, residual, blocks)
        self.horizon = horizon
        self.time = nn.ModuleList([TimeEmbedding(width, max_frequency) for _ in range(2)])
        self.condition = nn.Linear(cond_dim, width)
        self.actions = nn.Linear(action_dim, width)
        self.rotary = Rotary(width // heads)
        pairs = [(Attention(width, heads), SwiGLU(width)) for _ in range(layers)]
        self.layers = nn.ModuleList([layer for pair in pairs for layer in pair])
        self.norms = nn.ModuleList([nn.RMSNorm(width, eps=_EPS) for _ in self.layers])
        size = len(self.layers) // blocks if residual == "attnres_block" else 1
        self.residual = None if residual == "standard" else AttentionResidual(len(self.layers), width, size)
        self.norm = nn.RMSNorm(width, eps=_EPS)
        self.out = nn.Linear(width, action_dim)
        self.apply(_initialize)

    def forward(self, z: Tensor, r: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict velocities, (B, T, A).

        Args:
            z: (B, T, A) noisy actions.
            r, t: (B,) times.
            condition: (B, N, cond_dim).
        """
        # 1. embed everything as tokens: 2 times, N of the condition, T actions -> (B, 2 + N + T, width)
        times = [embed(time)[:, None] for embed, time in zip(self.time, (r, t), strict=True)]
        x = torch.cat([*times, self.condition(condition), self.actions(z)], 1)

        # 2. attention and SwiGLU in turn, each on what the residual reads: (B, 2 + N + T, width)
        rotation = self.rotary(x.shape[1])
        stream = SumStream(x) if self.residual is None else self.residual.stream(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            stream.add(layer(norm(stream.read()), rotation))

        # 3. read out the action tokens: (B, T, width) -> (B, T, A)
        return self.out(self.norm(stream.read()[:, -self.horizon :]))


def check_sizes(width: int, layers: int, heads: int, residual: str, blocks: int) -> None:
    """Check the arguments of a `VelocityHead`.

    Raises:
        ValueError: if heads do not divide the width into even parts, which rotary embeddings need, the
            residual is unknown, or blocks do not divide the depth.
    """
    if width % (2 * heads):
        raise ValueError(
            f"n_head: found {heads} of n_emb = {width}, expected heads of an even width, as 384 and 6 give."
        )
    if residual not in RESIDUALS:
        raise ValueError(f"residual: found {residual!r}, expected one of {', '.join(RESIDUALS)}.")
    if residual == "attnres_block" and (blocks < 1 or 2 * layers % blocks):
        raise ValueError(
            f"attnres_blocks: found {blocks}, expected a divisor of {2 * layers}, twice the number of layers."
        )


# -- residual connections


class SumStream:
    """The running sum of the usual residual connection, (B, N, D)."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def add(self, output: Tensor) -> None:
        """Add the output of a sub-layer."""
        self.x = self.x + output

    def read(self) -> Tensor:
        """Return the input of the next sub-layer."""
        return self.x


class AttentionResidual(nn.Module):
    """Attention over earlier outputs in depth, separately at every token.

    Args:
        sublayers: number of readers; one more query reads the final output.
        width: of a token.
        size: sub-layers that are summed to one source; 1 is the full variant.
    """

    def __init__(self, sublayers: int, width: int, size: int = 1) -> None:
        super().__init__()
        self.size = size
        self.sources = 1 + -(-sublayers // size)
        self.queries = nn.Parameter(torch.zeros(sublayers + 1, width))

    def stream(self, x: Tensor) -> "AttentionStream":
        """Begin with the embedding (B, N, D)."""
        return AttentionStream(self, x)


class AttentionStream:
    """The sources of one forward pass: the embedding x, (B, N, D), and the sums of blocks of sub-layers."""

    def __init__(self, residual: AttentionResidual, x: Tensor) -> None:
        self.residual = residual
        self.sources: list[Tensor] | Tensor = [x] * residual.sources
        if not torch.is_grad_enabled():  # one buffer, instead of stacking them again at each read
            self.sources = x.new_empty(residual.sources, *x.shape)
        self.scales: list[Tensor] = []  # 1 / RMS of each source, (B, N)
        self.sublayer = 0
        self._keep(x)

    def add(self, output: Tensor) -> None:
        """Add the output of a sub-layer to its block."""
        if self.sublayer % self.residual.size:  # replace the block, which is not complete
            output = self.last + output
            self.scales.pop()
        self.sublayer += 1
        self._keep(output)

    def read(self) -> Tensor:
        """Return the next input: the mean of all sources, weighted by softmax(w . RMSNorm(source))."""
        # 1. the sources, with an incomplete block: (K, B, N, D), and their scales: (K, B, N)
        scales, sources = torch.stack(self.scales), self.sources[: len(self.scales)]
        sources = torch.stack(sources) if isinstance(sources, list) else sources

        # 2. weights by the query of the sub-layer: (K, B, N, D) @ (D,) -> (K, B, N)
        weights = ((sources @ self.residual.queries[self.sublayer]) * scales).softmax(0)

        # 3. weighted mean: -> (B, N, D). A batched product would be one tiny product per token.
        return (weights[..., None] * sources).sum(0)

    def _keep(self, source: Tensor) -> None:
        self.last = self.sources[len(self.scales)] = source
        self.scales.append((source.square().mean(-1) + _EPS).rsqrt())


# -- sub-layers


class Attention(nn.Module):
    """Bidirectional attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Attend, (B, N, D) -> (B, N, D)."""
        # 1. queries, keys and values: (B, N, D) -> (3, B, heads, N, d)
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # 2. rotate queries and keys by their position
        q, k = rotate(qkv[:2], rotation)
        # 3. attend and merge the heads: (B, heads, N, d) -> (B, N, D)
        values = F.scaled_dot_product_attention(q, k, qkv[2])
        return self.out(values.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A gated layer, 8/3 as wide as its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * math.ceil(width / 3)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Apply the layer, (B, N, D) -> (B, N, D); `rotation` is not used."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Rotary(nn.Module):
    """Rotary position embedding (RoPE) of heads of `dim` numbers."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        frequencies = 10_000.0 ** -(torch.arange(0, dim, 2) / dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, count: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the angles, (count, dim / 2) each."""
        angles = torch.arange(count, device=self.frequencies.device)[:, None] * self.frequencies
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + d / 2) of (..., N, d) by its token's angle."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class TimeEmbedding(nn.Module):
    """A time in [0, 1] as a token; smooth, so that the derivative by time stays small.

    Args:
        width: of a token.
        max_frequency: [rad per unit]; the lowest is a hundredth of it.
    """

    frequencies: Tensor

    def __init__(self, width: int, max_frequency: float) -> None:
        super().__init__()
        frequencies = torch.logspace(math.log10(max_frequency / 100), math.log10(max_frequency), width // 2)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.net = nn.Sequential(nn.Linear(2 * (width // 2), width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        """Embed times, (B,) -> (B, width)."""
        angles = time[:, None] * self.frequencies
        return self.net(torch.cat([angles.cos(), angles.sin()], -1))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
