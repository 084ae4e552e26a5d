# SPDX-License-Identifier: Apache-2.0
"""How good a segmenter is: IoU per class, and the error of its disparity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import MulticlassJaccardIndex
from transformers import EvalPrediction

from .data import Frames


def full_size_predictions(outputs: Any, labels: Any) -> tuple[Tensor, ...]:
    """Turn what the model answers into what is measured, at the size of the labels.

    Args:
        outputs: logits (B, C, h, w), or (logits, disparity (B, h, w)).
        labels: masks (B, H, W), or (masks, disparity).

    Returns:
        (ids,) or (ids, disparity), (B, H, W) each.
    """
    masks = labels[0] if isinstance(labels, tuple) else labels
    maps = outputs if isinstance(outputs, tuple) else (outputs, None)
    size = masks.shape[-2:]
    ids = F.interpolate(maps[0].float(), size=size, mode="bilinear").max(1).indices
    if maps[1] is None:
        return (ids,)
    return ids, F.interpolate(maps[1][:, None].float(), size=size, mode="bilinear")[:, 0]


class ValidationMetrics:
    """What the Trainer calls with every validation batch; sums confusions instead of keeping predictions.

    Args:
        class_names: position = id.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self.jaccard = MulticlassJaccardIndex(len(self.class_names), average="none")
        self.disparity = MeanAbsoluteError()

    def __call__(self, batch: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Take a batch in; after the last one, return `iou`, `iou_<class>` and `disparity_error` (0..255).

        The IoU of a class that is in no mask is NaN and left out of the mean.
        """
        truths: Any = batch.label_ids if isinstance(batch.label_ids, tuple) else (batch.label_ids,)
        answers: Any = batch.predictions
        self.jaccard.to(answers[0].device).update(answers[0], truths[0].long())
        if len(answers) == 2:
            self.disparity.to(answers[1].device).update(answers[1], truths[1])
        return self._result(len(answers) == 2) if compute_result else {}

    def _result(self, disparity: bool) -> dict[str, float]:
        occurs = self.jaccard.confmat.sum(1) > 0
        scores = self.jaccard.compute().where(occurs, torch.nan)
        result = {"iou": scores.nanmean().item()}
        result |= {
            f"iou_{name}": score for name, score in zip(self.class_names, scores.tolist(), strict=True)
        }
        if disparity:
            result["disparity_error"] = 255 * self.disparity.compute().item()
        self.jaccard.reset()
        self.disparity.reset()
        return result


def mean_disparity_error(frames: Frames, training: Sequence[int], validation: Sequence[int]) -> float:
    """Error of always answering a camera's mean disparity over the training frames.

    Returns:
        Mean absolute error over the validation frames of cameras that have training frames, 0..255.
    """
    assert frames.disparity is not None
    camera = np.array([info.camera for info in frames.infos])
    errors = []
    for name in np.unique(camera):
        known = [row for row in training if camera[row] == name]
        if known:
            mean = sum(frames.disparity[row].astype(np.float64) for row in known) / len(known)
            errors += [
                np.abs(frames.disparity[row] - mean).mean() for row in validation if camera[row] == name
            ]
    return 255 * float(np.mean(errors))


def iou_table(scores: Mapping[str, float | None]) -> str:
    """IoU per class, one line each."""
    width = max(map(len, scores))
    lines = [
        f"{name:<{width}}  {'does not occur' if score is None else f'{score:.3f}'}"
        for name, score in scores.items()
    ]
    return "\n".join(lines)
