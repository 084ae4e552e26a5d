# SPDX-License-Identifier: Apache-2.0
"""The transformer that turns a condition and noisy actions into velocities.

What is unusual about it:
- Everything is a token: the two times, the condition, the actions. There is no cross-attention and no adaptive norm;
  attention is bidirectional and only the actions are read.
- With `residual="attnres_full"` no sum runs through the depth. Each sub-layer reads a weighted mean of all that came
  before it, with weights from one learned query per sub-layer (Attention Residuals, 2603.15031). Queries start at zero,
  so that it begins as the plain mean. With `attnres_block` sub-layers of a block are summed, and blocks are read.
- It can be differentiated forward: under `torch.func.jvp` attention must take its plain path, see `objectives.py`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESIDUALS = ("attnres_full", "attnres_block", "standard")
_EPS = 1e-6


class VelocityHead(nn.Module):
    """u(z, r, t | condition).

    Args:
        action_dim: A, of one action.
        horizon: T, actions in a chunk.
        cond_dim: of the tokens of the condition.
        width, layers, heads: of the transformer.
        residual: one of `RESIDUALS`.
        blocks: of "attnres_block".
        max_frequency: of the embedding of times [rad per unit]. High ones make du/dt explode.

    Raises:
        ValueError: heads that do not divide the width into even parts, or blocks that do not divide the depth.
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
        self.horizon = horizon
        self.time = nn.ModuleList([TimeEmbedding(width, max_frequency) for _ in range(2)])
        self.condition = nn.Linear(cond_dim, width)
        self.actions = nn.Linear(action_dim, width)
        self.rotary = Rotary(width // heads)
        pairs = [(Attention(width, heads), SwiGLU(width)) for _ in range(layers)]
        self.layers = nn.ModuleList([layer for pair in pairs for layer in pair])
        self.norms = nn.ModuleList([nn.RMSNorm(width, eps=_EPS) for _ in self.layers])
        self.residual = make_residual(residual, len(self.layers), width, blocks)
        self.norm = nn.RMSNorm(width, eps=_EPS)
        self.out = nn.Linear(width, action_dim)
        self.apply(_initialize)

    def forward(self, z: Tensor, r: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Velocities (B, T, A).

        Args:
            z: (B, T, A) noisy actions.
            r, t: (B,) times.
            condition: (B, N, cond_dim).
        """
        times = [embed(time) for embed, time in zip(self.time, (r, t), strict=True)]
        tokens = [*(time[:, None] for time in times), self.condition(condition), self.actions(z)]
        x = torch.cat(tokens, 1)  # (B, 2 + N + T, width)
        rotation = self.rotary(x.shape[1])
        depth = self.residual.start(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            depth.add(layer(norm(depth.read()), rotation))
        return self.out(self.norm(depth.read()[:, -self.horizon :]))


# -- through the depth -----------------------------------------------------------------------------------------


def make_residual(kind: str, sublayers: int, width: int, blocks: int) -> "Standard | AttentionResidual":
    """What connects the sub-layers.

    Raises:
        ValueError: an unknown kind, or blocks that do not divide the depth.
    """
    if kind == "standard":
        return Standard()
    if kind not in RESIDUALS:
        raise ValueError(f"residual: found {kind!r}, expected one of {', '.join(RESIDUALS)}.")
    if kind == "attnres_full":
        return AttentionResidual(sublayers, width)
    check_blocks(sublayers, blocks)
    return AttentionResidual(sublayers, width, sublayers // blocks)


def check_blocks(sublayers: int, blocks: int) -> None:
    """Refuse blocks that do not divide the depth.

    Raises:
        ValueError: they do not.
    """
    if blocks < 1 or sublayers % blocks:
        raise ValueError(
            f"attnres_blocks: found {blocks}, expected a divisor of {sublayers}, twice the number of layers."
        )


class Standard(nn.Module):
    """A running sum."""

    def start(self, x: Tensor) -> "Sum":
        """Begin with the embedding (B, N, D)."""
        return Sum(x)


class Sum:
    """What a forward pass has added up so far."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def add(self, out: Tensor) -> None:
        """Take in what a sub-layer has computed."""
        self.x = self.x + out

    def read(self) -> Tensor:
        """What the next sub-layer reads."""
        return self.x


class AttentionResidual(nn.Module):
    """Attention over what came before in depth, by itself at every token.

    Args:
        sublayers: that read; one more query is for what is read at the end.
        width: of a token.
        size: sub-layers that are summed to one source; 1 is the full variant.
    """

    def __init__(self, sublayers: int, width: int, size: int = 1) -> None:
        super().__init__()
        self.size = size
        self.sources = 1 + -(-sublayers // size)
        self.queries = nn.Parameter(torch.zeros(sublayers + 1, width))

    def start(self, x: Tensor) -> "Depth":
        """Begin with the embedding (B, N, D)."""
        # Where nothing is differentiated, sources share one buffer instead of being copied together at each read.
        buffer = None if torch.is_grad_enabled() else x.new_empty(self.sources, *x.shape)
        return Depth(self, x, buffer)


class Depth:
    """The sources of one forward pass.

    Args:
        residual: whose queries read them.
        x: (B, N, D), the first.
        buffer: (sources, B, N, D), if they are kept in one.
    """

    def __init__(self, residual: AttentionResidual, x: Tensor, buffer: Tensor | None) -> None:
        self.residual, self.buffer = residual, buffer
        self.kept: list[Tensor] = []
        self.scales: list[Tensor] = []  # 1 / RMS of each source, (B, N)
        self.partial: Tensor | None = None
        self.sublayer = 0
        self._keep(x)

    def add(self, out: Tensor) -> None:
        """Take in what a sub-layer has computed."""
        self.sublayer += 1
        self.partial = out if self.partial is None else self.partial + out
        if self.sublayer % self.residual.size == 0:
            self._keep(self.partial)
            self.partial = None

    def read(self) -> Tensor:
        """What the next sub-layer reads: the mean of the sources, (B, N, D), weighted by softmax(w . RMSNorm(source))."""
        sources, scales = self._sources()
        query = self.residual.queries[self.sublayer]
        scores = (sources @ query) * scales  # (sources, B, N)
        weights = scores.softmax(0)
        # As a batched product it would be one tiny product per token.
        return (weights[..., None] * sources).sum(0)

    def _sources(self) -> tuple[Tensor, Tensor]:
        count = len(self.scales)
        if self.buffer is not None:
            if self.partial is None:
                return self.buffer[:count], torch.stack(self.scales)
            self.buffer[count] = self.partial
            return self.buffer[: count + 1], torch.stack([*self.scales, _scale(self.partial)])
        if self.partial is None:
            return torch.stack(self.kept), torch.stack(self.scales)
        return torch.stack([*self.kept, self.partial]), torch.stack([*self.scales, _scale(self.partial)])

    def _keep(self, source: Tensor) -> None:
        if self.buffer is None:
            self.kept.append(source)
        else:
            self.buffer[len(self.scales)] = source
        self.scales.append(_scale(source))


def _scale(x: Tensor) -> Tensor:
    return (x.square().mean(-1) + _EPS).rsqrt()


# -- sub-layers ------------------------------------------------------------------------------------------------


def check_heads(width: int, heads: int) -> None:
    """Refuse heads that do not divide the width into even parts, which rotations need.

    Raises:
        ValueError: they do not.
    """
    if width % (2 * heads):
        raise ValueError(
            f"n_head: found {heads} of n_emb = {width}, expected heads of an even width, as 384 and 6 give."
        )


class Attention(nn.Module):
    """Bidirectional attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, d)
        q, k = rotate(qkv[:2], rotation)
        seen = F.scaled_dot_product_attention(q, k, qkv[2])
        return self.out(seen.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A gated layer, 8/3 as wide as its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * math.ceil(width / 3)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Rotary(nn.Module):
    """Rotations that tell attention how far apart two tokens are (RoPE).

    Args:
        dim: of a head.
        base: of the geometric series of frequencies.
    """

    frequencies: Tensor

    def __init__(self, dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        frequencies = base ** -(torch.arange(0, dim, 2) / dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (count, dim / 2) each."""
        angles = torch.arange(count, device=self.frequencies.device)[:, None] * self.frequencies
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair of numbers (i, i + d / 2) of (..., N, d) by its token's angle."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class TimeEmbedding(nn.Module):
    """A time in [0, 1] as a token; smooth, so that the derivative by time is small.

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
        """(B,) to (B, width)."""
        angles = time[:, None] * self.frequencies
        return self.net(torch.cat([angles.cos(), angles.sin()], -1))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
