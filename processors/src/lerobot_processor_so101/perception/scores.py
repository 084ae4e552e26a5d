# SPDX-License-Identifier: Apache-2.0
"""The output of every segmenter: evidence per class and pixel, with a declared kind."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .resize import resize_area, resize_ids, resize_linear
from .stored import round_disparity

ScoreKind = Literal["logits", "log_scores", "probs", "ids"]
EPSILON = 1e-6
CLASSES_AT_A_TIME = 8


@dataclass(frozen=True)
class Scores:
    """Per-class evidence of one segmenter on its own grid.

    | kind         | values                  | meaning                                                     |
    |--------------|-------------------------|-------------------------------------------------------------|
    | `logits`     | (B, C, h, w) float      | a softmax over C gives probabilities                        |
    | `log_scores` | (B, C, h, w) float      | logarithms of evidence; a softmax over C normalises it      |
    | `probs`      | (B, C, h, w) float >= 0 | evidence; need not sum to 1 over C (Mask2Former's does not) |
    | `ids`        | (B, 1, h, w) integer    | the class of each pixel                                     |

    Attributes:
        values: the evidence.
        kind: kind of the values.
        class_names: names of the C classes.
        disparity: (B, h, w) in [0, 1], near = 1, from segmenters with a disparity head.

    Raises:
        ValueError: if the shape of `values` does not fit the kind and the classes.
    """

    values: Tensor
    kind: ScoreKind
    class_names: tuple[str, ...]
    disparity: Tensor | None = None

    def __post_init__(self) -> None:
        channels = 1 if self.kind == "ids" else len(self.class_names)
        if self.values.ndim != 4 or self.values.shape[1] != channels:
            raise ValueError(
                f"scores of kind {self.kind!r} with {len(self.class_names)} classes: found shape "
                f"{tuple(self.values.shape)}, expected (B, {channels}, h, w)."
            )

    def as_logits(self) -> Tensor:
        """Return (B, C, h, w) float32 whose softmax over C gives the probabilities."""
        if self.kind in ("logits", "log_scores"):
            return self.values.float()
        return (self._evidence() + EPSILON).log()

    def as_probs(self) -> Tensor:
        """Return (B, C, h, w) float32 that sums to 1 over C."""
        if self.kind in ("logits", "log_scores"):
            return self.values.float().softmax(1)
        evidence = self._evidence() + EPSILON
        return evidence / evidence.sum(1, keepdim=True)

    def ids(self, size: tuple[int, int] | None = None) -> Tensor:
        """Return the class of each pixel, (B, h, w) uint8, or int32 for more than 256 classes.

        By default on the segmenter's own grid. Evidence is interpolated before the argmax, so that edges are
        smoother than those of enlarged ids.
        """
        dtype = torch.uint8 if len(self.class_names) <= 256 else torch.int32
        if self.kind == "ids":
            ids = self.values[:, 0]
            return (ids if size is None else resize_ids(ids, size)).to(dtype)
        return torch.stack([_argmax(evidence, size).to(dtype) for evidence in self.values])

    def pooled(self, size: tuple[int, int]) -> Tensor:
        """Return probabilities averaged over the cells of a coarser grid, (B, C, h, w) float32."""
        return resize_area(self.as_probs(), size)

    def top_k(self, k: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the k classes, or all, that cover most of each image, on a grid such as a vision tower's.

        Returns:
            Ids (B, k) int64 by decreasing share of the image, and their probabilities (B, k, h, w) float32.
        """
        pooled = self.pooled(size)
        ids = pooled.mean((-2, -1)).topk(min(k, pooled.shape[1])).indices
        return ids, pooled.gather(1, ids[..., None, None].expand(-1, -1, *size))

    def stored_logits(self, size: tuple[int, int]) -> Tensor:
        """Return logits as a dataset stores them, (B, C, h, w) float16."""
        return F.interpolate(self.as_logits(), size=size, mode="bilinear", align_corners=False).half()

    def disparity_map(self, size: tuple[int, int]) -> Tensor:
        """Return the segmenter's own disparity, (B, h, w) float32 in 0..255, rounded as a dataset stores it.

        Raises:
            ValueError: if this segmenter has no disparity head.
        """
        if self.disparity is None:
            raise ValueError("disparity: this segmenter has no disparity head; name a depth model instead.")
        return round_disparity(resize_linear(self.disparity.float(), size) * 255)

    def rows(self, start: int, end: int) -> "Scores":
        """Return the scores of some images of the batch."""
        disparity = None if self.disparity is None else self.disparity[start:end]
        return replace(self, values=self.values[start:end], disparity=disparity)

    def _evidence(self) -> Tensor:
        if self.kind == "probs":
            return self.values.float()
        return F.one_hot(self.values[:, 0].long(), len(self.class_names)).movedim(-1, 1).float()


def _argmax(evidence: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return the class with most evidence at each pixel of one image, (C, H, W) -> (h, w) int64."""
    # Some classes at a time: 150 at 480 x 640 are 184 MB of floats. By `max`: on a CPU, `argmax` over this
    # dimension takes 15 times as long.
    best = ids = torch.empty(0)
    for start in range(0, len(evidence), CLASSES_AT_A_TIME):
        some = evidence[start : start + CLASSES_AT_A_TIME].float()
        values, indices = (some if size is None else resize_linear(some, size)).max(0)
        if start == 0:
            best, ids = values, indices
        else:
            better = values > best  # of equals the first, as argmax
            best, ids = torch.where(better, values, best), torch.where(better, start + indices, ids)
    return ids
