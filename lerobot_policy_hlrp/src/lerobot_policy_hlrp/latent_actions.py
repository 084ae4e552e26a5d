# SPDX-License-Identifier: Apache-2.0
"""The latent action model: what has changed between two frames, in a few codes.

    o_t, o_t+k ── patches ── spatial transformer, each frame ── temporal transformer, each patch
                                                                        │
                       quantise( S numbers-per-part of o_t+k  -  those of o_t )
                                                                        │
    o_t ── patches ── decoder, which reads the codes ── o_t+k (and its features, and optical flow)

The decoder is shown o_t and must make o_t+k: what o_t cannot tell has to pass through the codes. It predicts the change
of pixels, so that without a code it would copy.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantizers import FSQ, NSVQ, Quantized, Usage

PARTS = {1: (1, 1), 2: (1, 2), 4: (2, 2), 16: (4, 4)}  # rows and columns that each code looks at


class Decoded(NamedTuple):
    """What the decoder makes of o_t and codes.

    Attributes:
        frame: (B, 3, H, W), the later frame.
        features: (B, N, C), of a frozen model at the later frame; None without.
        flow: (B, N, 2), mean movement within each patch, in widths and heights of the picture; None without.
    """

    frame: Tensor
    features: Tensor | None
    flow: Tensor | None


class LatentActionModel(nn.Module):
    """Encoder, quantiser and decoder.

    Args:
        image_size: side of the frames, in pixels.
        patch_size: side of a patch.
        width, heads: of the transformers.
        spatial_layers, temporal_layers, decoder_layers: their depths.
        codes: S, per pair of frames: 1, 2, 4 or 16, each for a part of the picture.
        quantizer: `fsq` or `nsvq`.
        levels: of `fsq`.
        codebook_size, code_dim: of `nsvq`.
        feature_dim: C of the frozen model; 0 without.
        flow: predict optical flow too.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        heads: int,
        spatial_layers: int,
        temporal_layers: int,
        decoder_layers: int,
        codes: int,
        quantizer: str,
        levels: list[int],
        codebook_size: int,
        code_dim: int,
        feature_dim: int = 0,
        flow: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid = image_size // patch_size
        self.quantizer = FSQ(levels) if quantizer == "fsq" else NSVQ(code_dim, codebook_size)
        self.usage = Usage(self.quantizer.codebook_size, self.quantizer.dim)
        self.patches = Patches(patch_size, self.grid, width)
        self.when = nn.Parameter(0.02 * torch.randn(2, width))
        self.spatial = _encoder(width, heads, spatial_layers)
        self.temporal = _encoder(width, heads, temporal_layers)
        rows, columns = PARTS[codes]
        part = (self.grid // rows, self.grid // columns)
        self.summary = nn.Conv2d(width, self.quantizer.dim, kernel_size=part, stride=part)
        self.context = Patches(patch_size, self.grid, width)
        self.told = nn.Linear(self.quantizer.dim, width)
        self.which = nn.Parameter(0.02 * torch.randn(codes, width))
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, decoder_layers, nn.LayerNorm(width))
        self.to_pixels = nn.Linear(width, 3 * patch_size**2)
        nn.init.zeros_(self.to_pixels.weight)
        nn.init.zeros_(self.to_pixels.bias)
        self.to_features = nn.Linear(width, feature_dim) if feature_dim else None
        self.to_flow = nn.Linear(width, 2) if flow else None

    def delta(self, frames: Tensor) -> Tensor:
        """What has changed, (B, S, D), before the choice.

        Args:
            frames: (B, 2, 3, H, W) in [0, 1], earlier and later.
        """
        batch = len(frames)
        tokens = self.spatial(self.patches(frames.flatten(0, 1))).unflatten(0, (batch, 2))  # (B, 2, N, W)
        pairs = tokens.transpose(1, 2).flatten(0, 1) + self.when  # (B N, 2, W)
        earlier, later = self.temporal(pairs).unflatten(0, (batch, -1)).unbind(2)  # (B, N, W)
        return self._parts(later) - self._parts(earlier)

    def _parts(self, tokens: Tensor) -> Tensor:
        """(B, N, W) to (B, S, D)."""
        return self.summary(tokens.mT.unflatten(2, (self.grid, self.grid))).flatten(2).mT

    def encode(self, frames: Tensor) -> Quantized:
        """Codes of pairs of frames; see `delta`."""
        return self.quantizer(self.delta(frames))

    def decode(self, frame: Tensor, passed: Tensor) -> Decoded:
        """What comes of a frame by codes.

        Args:
            frame: (B, 3, H, W), the earlier one.
            passed: (B, S, D).
        """
        told = self.told(passed) + self.which
        tokens = self.decoder(self.context(frame), told)
        planes = self.to_pixels(tokens).mT.unflatten(2, (self.grid, self.grid))  # (B, 3 p p, g, g)
        return Decoded(
            frame + F.pixel_shuffle(planes, self.patch_size),
            self.to_features(tokens) if self.to_features is not None else None,
            self.to_flow(tokens) if self.to_flow is not None else None,
        )


class Patches(nn.Module):
    """Patches of pictures as tokens, (B, 3, H, W) to (B, N, width)."""

    def __init__(self, patch_size: int, grid: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch_size, patch_size)
        self.where = nn.Parameter(0.02 * torch.randn(grid * grid, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, pictures: Tensor) -> Tensor:
        """Tokens, row by row."""
        return self.norm(self.embed(2 * pictures - 1).flatten(2).mT) + self.where


def _encoder(width: int, heads: int, layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
