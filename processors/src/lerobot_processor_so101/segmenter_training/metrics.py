# SPDX-License-Identifier: Apache-2.0
"""Metrics of a segmenter: IoU per class, and the error of its disparity; and how they are printed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import MulticlassJaccardIndex
from tqdm import tqdm
from transformers import EvalPrediction, TrainerCallback, TrainerState

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


class ObjectErrors:
    """How often a policy would reach for the wrong place: errors of objects, not of pixels."""

    LEAST = 20  # pixels from which on a class counts as visible in an image
    FAR = 0.05  # of the image's longer side

    def __init__(self, n_classes: int) -> None:
        self._n = n_classes
        self.reset()

    def reset(self) -> None:
        self._visible, self._misplaced, self._absent, self._false = torch.zeros(4, self._n)

    def update(self, found: Tensor, truth: Tensor) -> None:
        """Add predicted and true class ids, (B, H, W) integers."""
        areas, centres = zip(*(self._objects(ids) for ids in (found, truth)), strict=True)
        is_found, is_visible = (area >= self.LEAST for area in areas)  # (B, C)
        far = (centres[0] - centres[1]).norm(dim=-1) > self.FAR * max(truth.shape[-2:])
        self._visible += is_visible.sum(0)
        self._misplaced += (is_visible & (far | ~is_found)).sum(0)
        self._absent += (~is_visible).sum(0)
        self._false += (is_found & ~is_visible).sum(0)

    def _objects(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the area (B, C) and the centre (B, C, 2) [pixels] of each class."""
        height, width = ids.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        weights = torch.stack([torch.ones_like(rows), columns, rows]).double().flatten(1)  # (3, H * W)
        flat = ids.cpu().long().flatten(1)
        sums = [[torch.bincount(image, w, self._n) for w in weights] for image in flat]
        area, x, y = torch.stack([torch.stack(image) for image in sums], 1)  # (B, C) each
        return area, torch.stack([x, y], -1) / area.clamp(min=1)[..., None]

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return two rates by class, (C,); NaN where there was no such image.

        Of the images that show the class, those in which it is missed or its centre is `FAR` off; of the
        others, those in which the class is found.
        """
        return self._misplaced / self._visible, self._false / self._absent


class ValidationMetrics:
    """Compute metrics over validation batches, for the Trainer; sums confusions and keeps no predictions."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self.jaccard = MulticlassJaccardIndex(len(self.class_names), average="none")
        self.disparity = MeanAbsoluteError()
        self.objects = ObjectErrors(len(self.class_names))

    def __call__(self, batch: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Add a batch; after the last one, return `iou`, `iou_<class>` and `disparity_error` (0..255).

        The IoU of a class that occurs in no mask is NaN, and excluded from the mean. `misplaced_<class>` and
        `false_<class>` are those of `ObjectErrors`.
        """
        labels: Any = batch.label_ids if isinstance(batch.label_ids, tuple) else (batch.label_ids,)
        predictions: Any = batch.predictions
        self.jaccard.to(predictions[0].device).update(predictions[0], labels[0].long())
        self.objects.update(predictions[0], labels[0])
        if len(predictions) == 2:
            self.disparity.to(predictions[1].device).update(predictions[1], labels[1])
        if not compute_result:
            return {}
        occurs = self.jaccard.confmat.sum(1) > 0
        scores = self.jaccard.compute().where(occurs, torch.nan)
        result = {"iou": scores.nanmean().item()}
        rates = scores, *self.objects.compute()
        for kind, values in zip(("iou", "misplaced", "false"), rates, strict=True):
            names = [f"{kind}_{name}" for name in self.class_names]
            result |= dict(zip(names, values.tolist(), strict=True))
        if len(predictions) == 2:
            result["disparity_error"] = 255 * self.disparity.compute().item()
        for metric in (self.jaccard, self.disparity, self.objects):
            metric.reset()
        return result


def mean_disparity_error(frames: Frames, training: Sequence[int], validation: Sequence[int]) -> float:
    """Return the mean absolute error, 0..255, of a baseline: the mean of the training frames of each camera.

    Validation frames of cameras without training frames are left out.
    """
    assert frames.disparity is not None
    camera = np.array([info.camera for info in frames.infos])
    errors = []
    for name in np.unique(camera):
        rows = [row for row in training if camera[row] == name]
        if rows:
            mean = sum(frames.disparity[row].astype(np.float64) for row in rows) / len(rows)
            others = [row for row in validation if camera[row] == name]
            errors += [np.abs(frames.disparity[row] - mean).mean() for row in others]
    return 255 * float(np.mean(errors))


def metrics_table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """Format values by class name, by the heading of their column, in a line per class; "-" for None."""
    names = list(next(iter(columns.values())))
    width = max(map(len, ["class", *names]))
    lines = ["  ".join([f"{'class':<{width}}", *columns])]
    for name in names:
        values = [column[name] for column in columns.values()]
        texts = ["-" if value is None else f"{value:.3f}" for value in values]
        cells = [f"{text:>{len(heading)}}" for text, heading in zip(texts, columns, strict=True)]
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


class EpochTable(TrainerCallback):
    """Print IoU per class, instead of the dictionaries that the Trainer's progress bar prints."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self.bar: Any = None
        self.loss = float("nan")

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.loss = kwargs["logs"].get("loss", self.loss)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.bar is None:  # the training has ended
            return
        metrics = kwargs["metrics"]
        scores = {name: metrics[f"eval_iou_{name}"] for name in self.class_names}
        line = "  ".join(f"{name} {score:.3f}" for name, score in scores.items() if score == score)
        if "eval_disparity_error" in metrics:
            line += f"  disparity error {metrics['eval_disparity_error']:.1f}"
        epoch = round(state.epoch or 0)
        self.bar.write(f"epoch {epoch:>3}  loss {self.loss:.4f}  IoU {metrics['eval_iou']:.3f}:  {line}")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.bar.close()
        self.bar = None
