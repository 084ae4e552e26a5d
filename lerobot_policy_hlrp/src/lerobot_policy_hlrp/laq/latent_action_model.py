# SPDX-License-Identifier: Apache-2.0
"""The latent action model: the change between two frames in a few codes (LAPA, 2410.11758).

    o_t, o_t+k ── patches ── spatial transformer, each frame ── temporal transformer, each patch
                                                                        │
                        quantise( summary of o_t+k  -  summary of o_t ), one code per part
                                                                        │
    o_t ── patches ── decoder, with cross-attention to the codes ── o_t+k (and its features, and optical flow)

What is unusual about it: the decoder gets o_t and must predict o_t+k, so the codes carry what o_t does not.
It predicts the change of pixels: without codes it copies the frame.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration_hlrp_laq import PARTS, HLRPLAQConfig
from .quantizers import FSQ, NSVQ, Quantized, Usage


class Decoded(NamedTuple):
    """Output of the decoder.

    Attributes:
        frame: (B, 3, H, W), the later frame.
        features: (B, N, C), features of the later frame; None without a feature model.
        flow: (B, N, 2), mean motion within each patch in widths and heights of the image; None without a flow
            model.
    """

    frame: Tensor
    features: Tensor | None
    flow: Tensor | None


class LatentActionModel(nn.Module):
    """Encoder, quantiser and decoder; `config` gives all sizes."""

    def __init__(self, config: HLRPLAQConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.patch_size, self.grid = config.patch_size, config.grid
        fsq = config.quantizer == "fsq"
        self.quantizer = FSQ(list(config.levels)) if fsq else NSVQ(config.code_dim, config.codebook_size)
        self.usage = Usage(self.quantizer.codebook_size, self.quantizer.dim)
        self.patches = Patches(self.patch_size, self.grid, width)
        self.when = nn.Parameter(0.02 * torch.randn(2, width))  # embeddings of earlier and later
        self.spatial = _encoder(width, heads, config.spatial_layers)
        self.temporal = _encoder(width, heads, config.temporal_layers)
        rows, columns = PARTS[config.codes]
        part = (self.grid // rows, self.grid // columns)
        self.summary = nn.Conv2d(width, self.quantizer.dim, kernel_size=part, stride=part)
        self.context = Patches(self.patch_size, self.grid, width)
        self.told = nn.Linear(self.quantizer.dim, width)  # tokens of the codes
        self.which = nn.Parameter(0.02 * torch.randn(config.codes, width))  # embeddings of the parts
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, config.decoder_layers, nn.LayerNorm(width))
        self.to_pixels = nn.Linear(width, 3 * self.patch_size**2)
        nn.init.zeros_(self.to_pixels.weight)
        nn.init.zeros_(self.to_pixels.bias)
        self.to_features = nn.Linear(width, config.feature_dim) if config.feature_dim else None
        self.to_flow = nn.Linear(width, 2) if config.flow_model else None

    def delta(self, frames: Tensor) -> Tensor:
        """Encode the change from the earlier to the later frame, (B, 2, 3, H, W) in [0, 1] -> (B, S, D)."""
        # 1. patches of each frame attend to each other: (B, 2, 3, H, W) -> (B, 2, N, W)
        tokens = self.spatial(self.patches(frames.flatten(0, 1))).unflatten(0, (-1, 2))
        # 2. the two tokens of each patch attend to each other: (B * N, 2, W) -> (B, N, W) each
        pairs = tokens.transpose(1, 2).flatten(0, 1) + self.when
        earlier, later = self.temporal(pairs).unflatten(0, (len(frames), -1)).unbind(2)
        # 3. change of the summary of each part: (B, S, D)
        return self._summarise(later) - self._summarise(earlier)

    def _summarise(self, tokens: Tensor) -> Tensor:
        """Summarise each part of the image, (B, N, W) -> (B, S, D)."""
        return self.summary(tokens.mT.unflatten(2, (self.grid, self.grid))).flatten(2).mT

    def encode(self, frames: Tensor) -> Quantized:
        """Quantise the change between two frames; see `delta`."""
        return self.quantizer(self.delta(frames))

    def decode(self, frame: Tensor, passed: Tensor) -> Decoded:
        """Predict the later frame from the earlier one, (B, 3, H, W), and the quantised change, (B, S, D)."""
        # 1. tokens of the codes, one per part: (B, S, D) -> (B, S, W)
        codes = self.told(passed) + self.which
        # 2. patches of the earlier frame read them: (B, 3, H, W) -> (B, N, W)
        tokens = self.decoder(self.context(frame), codes)
        # 3. change of the pixels of each patch: (B, N, W) -> (B, 3 * p * p, g, g) -> (B, 3, H, W)
        planes = self.to_pixels(tokens).mT.unflatten(2, (self.grid, self.grid))
        return Decoded(
            frame + F.pixel_shuffle(planes, self.patch_size),
            self.to_features(tokens) if self.to_features is not None else None,
            self.to_flow(tokens) if self.to_flow is not None else None,
        )


class Patches(nn.Module):
    """Embed the patches of images as tokens."""

    def __init__(self, patch_size: int, grid: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch_size, patch_size)
        self.where = nn.Parameter(0.02 * torch.randn(grid * grid, width))  # position embeddings
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Embed patches row by row, (B, 3, H, W) -> (B, N, width)."""
        return self.norm(self.embed(2 * images - 1).flatten(2).mT) + self.where


def _encoder(width: int, heads: int, layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
