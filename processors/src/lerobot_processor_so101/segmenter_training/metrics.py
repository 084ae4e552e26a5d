# SPDX-License-Identifier: Apache-2.0
"""Metrics of a segmenter: IoU per class, and the error of its disparity."""

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
    """Return predictions at the size of the labels.

    Args:
        outputs: logits (B, C, h, w), or (logits, disparity (B, h, w)).
        labels: masks (B, H, W), or (masks, disparity).

    Returns:
        (ids,) or (ids, disparity), each (B, H, W).
    """
    masks = labels[0] if isinstance(labels, tuple) else labels
    logits, disparity = outputs if isinstance(outputs, tuple) else (outputs, None)
    size = masks.shape[-2:]
    ids = F.interpolate(logits.float(), size=size, mode="bilinear").max(1).indices
    if disparity is None:
        return (ids,)
    return ids, F.interpolate(disparity[:, None].float(), size=size, mode="bilinear")[:, 0]


class ValidationMetrics:
    """Compute metrics over validation batches, for the Trainer; sums confusions and keeps no predictions.

    Args:
        class_names: names of the classes; position = id.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self.jaccard = MulticlassJaccardIndex(len(self.class_names), average="none")
        self.disparity = MeanAbsoluteError()

    def __call__(self, batch: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Add a batch; after the last one, return `iou`, `iou_<class>` and `disparity_error` (0..255).

        The IoU of a class that occurs in no mask is NaN, and excluded from the mean.
        """
        labels: Any = batch.label_ids if isinstance(batch.label_ids, tuple) else (batch.label_ids,)
        predictions: Any = batch.predictions
        self.jaccard.to(predictions[0].device).update(predictions[0], labels[0].long())
        if len(predictions) == 2:
            self.disparity.to(predictions[1].device).update(predictions[1], labels[1])
        return self._result(len(predictions) == 2) if compute_result else {}

    def _result(self, disparity: bool) -> dict[str, float]:
        occurs = self.jaccard.confmat.sum(1) > 0
        scores = self.jaccard.compute().where(occurs, torch.nan)
        names = [f"iou_{name}" for name in self.class_names]
        result = {"iou": scores.nanmean().item(), **dict(zip(names, scores.tolist(), strict=True))}
        if disparity:
            result["disparity_error"] = 255 * self.disparity.compute().item()
        self.jaccard.reset()
        self.disparity.reset()
        return result


def mean_disparity_error(frames: Frames, training: Sequence[int], validation: Sequence[int]) -> float:
    """Return the error of the baseline that predicts a camera's mean disparity over the training frames.

    Returns:
        Mean absolute error over the validation frames of cameras that have training frames, 0..255.
    """
    assert frames.disparity is not None
    camera = np.array([info.camera for info in frames.infos])
    errors = []
    for name in np.unique(camera):
        rows = [row for row in training if camera[row] == name]
        if rows:
            mean = sum(frames.disparity[row].astype(np.float64) for row in rows) / len(rows)
            errors += [
                np.abs(frames.disparity[row] - mean).mean() for row in validation if camera[row] == name
            ]
    return 255 * float(np.mean(errors))


def iou_table(scores: Mapping[str, float | None]) -> str:
    """Format IoU per class, one line each."""
    width = max(map(len, scores))
    texts = {name: "does not occur" if score is None else f"{score:.3f}" for name, score in scores.items()}
    return "\n".join(f"{name:<{width}}  {text}" for name, text in texts.items())
