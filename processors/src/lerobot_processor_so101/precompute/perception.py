# SPDX-License-Identifier: Apache-2.0
"""Options and models of `so101-precompute`: a segmenter, and its disparity or that of a depth model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config_checks import check_smallest
from ..models import make_segmenter
from ..perception.disparity import inverse_to_disparity
from ..perception.keys import disparity_key, seg_key, seg_logits_key, seg_top_k_key
from ..perception.scores import Scores
from ..perception.stored import encode_disparity, encode_ids, encode_top_k, floor_disparity
from .columns import DISPARITY, LOGITS, Column
from .config import FeatureExtractor, JobConfig

IDS, TOP_K = "ids", "top_k"
FORMS = (IDS, TOP_K, LOGITS)
FROM_SEGMENTER = "segmenter"
MAX_CLASSES = 256  # ids are uint8 where a policy reads them


@dataclass
class PrecomputeConfig(JobConfig):
    """Options of `so101-precompute`; see also `JobConfig`.

    Args:
        segmenter: name of a segmenter, such as "workbench", a folder or a Hub id.
        classes: free-text classes of an open-vocabulary segmenter.
        forms: forms of the scores to store: ids, top_k, logits.
        depth: name of a depth model, or "segmenter" for the segmenter's own disparity.
        height, width: size of ids and disparity [pixels].
        whole_disparity: floor disparity to integers, for policies with that option.
        top_k: number of classes that top_k stores per patch.
        grid: number of patches along each side, for top_k.
        logits_size: side of the square logits [pixels].
    """

    command: ClassVar[str] = "so101-precompute"

    segmenter: str | None = None
    classes: list[str] = field(default_factory=list)
    forms: list[str] = field(default_factory=lambda: [IDS])
    depth: str | None = None
    height: int = 84
    width: int = 84
    whole_disparity: bool = False
    top_k: int = 10
    grid: int = 32
    logits_size: int = 512

    def make_extractor(self, rank: int) -> FeatureExtractor:
        """Load the segmenter, the depth model, or both; see `JobConfig.make_extractor`."""
        return PerceptionExtractor(self, rank)

    def check(self) -> None:
        """Validate the options; see `JobConfig.check`."""
        super().check()
        if not self.segmenter and not self.depth:
            raise ValueError("found neither --segmenter nor --depth, expected at least one of them.")
        if not self.segmenter and (self.classes or self.depth == FROM_SEGMENTER):
            raise ValueError("--classes and --depth=segmenter need a --segmenter, found none.")
        unknown = [form for form in self.forms if form not in FORMS]
        if unknown or len(set(self.forms)) < len(self.forms):
            raise ValueError(f"--forms: found {self.forms}, expected different ones of {list(FORMS)}.")
        if self.segmenter and not self.forms and self.depth != FROM_SEGMENTER:
            raise ValueError("--forms: found none, expected one unless only --depth=segmenter is wanted.")
        check_smallest(self, dict.fromkeys(("height", "width", "top_k", "grid", "logits_size"), 1), "--")


class PerceptionExtractor(FeatureExtractor):
    """A segmenter, a depth model, or both.

    Raises:
        ValueError: if a model is unknown or cannot compute what the options request.
    """

    def __init__(self, config: PrecomputeConfig, rank: int = 0) -> None:
        super().__init__(config.device, config.batch_size, rank)
        self.config = config
        self.segmenter = make_segmenter(config.segmenter, config.classes) if config.segmenter else None
        self.estimator: Any = None
        if config.depth == FROM_SEGMENTER and self.segmenter and not self.segmenter.predicts_disparity:
            raise ValueError(
                f"--depth=segmenter: {config.segmenter!r} has no disparity head. Name a depth model."
            )
        if config.depth and config.depth != FROM_SEGMENTER:
            from ..models.depth import make_depth_estimator

            self.estimator = make_depth_estimator(config.depth)
        if self.segmenter and (count := len(self.segmenter.class_names)) > MAX_CLASSES:
            raise ValueError(
                f"--segmenter: {config.segmenter!r} has {count} classes, expected at most {MAX_CLASSES}."
            )

    def columns(self, image_sizes: Mapping[str, tuple[int, int]]) -> list[Column]:
        """Return the columns of every camera; see `FeatureExtractor.columns`."""
        config, columns = self.config, []
        size, grid, side = (config.height, config.width), config.grid, config.logits_size
        for camera, image_size in image_sizes.items():
            if self.segmenter is not None:
                identity, classes = self.segmenter.identity, len(self.segmenter.class_names)
                top_k = (min(config.top_k, classes), 1 + grid * grid, 1)
                forms = {
                    IDS: (seg_key(camera), size, (*size, 1)),
                    TOP_K: (seg_top_k_key(camera), (grid, grid), top_k),
                    LOGITS: (seg_logits_key(camera), (side, side), (classes, side, side)),
                }
                columns += [
                    Column(key, camera, form, map_size, shape, identity, image_size)
                    for form, (key, map_size, shape) in forms.items()
                    if form in config.forms
                ]
            if config.depth:
                model: Any = self.estimator or self.segmenter
                key, shape, floor = disparity_key(camera), (*size, 1), config.whole_disparity
                columns.append(Column(key, camera, DISPARITY, size, shape, model.identity, image_size, floor))
        return columns

    @torch.no_grad()
    def extract(self, images: Mapping[str, Tensor], columns: Sequence[Column]) -> dict[str, Tensor]:
        """Run each model once on all cameras; see `FeatureExtractor.extract`."""
        batches = [frames.to(self.device) for frames in images.values()]
        scores: dict[str, Scores] = {}
        inverse: dict[str, Tensor] = {}
        if self.segmenter is not None:
            scores = dict(zip(images, self.segmenter.segment(batches), strict=True))
            for camera, found in scores.items():
                _check_finite(found.values, self.segmenter.name, camera)
                _check_finite(found.disparity, self.segmenter.name, camera)
        if self.estimator is not None:
            inverse = dict(zip(images, self.estimator.estimate(batches), strict=True))
            for camera, depth in inverse.items():
                _check_finite(depth, self.estimator.name, camera)
        return {
            column.key: stored_form(column, scores.get(column.camera), inverse.get(column.camera)).cpu()
            for column in columns
        }


def stored_form(column: Column, scores: Scores | None, inverse: Tensor | None) -> Tensor:
    """Convert the scores or inverse depth (B, h, w) of a column's camera to the values that it stores."""
    if column.form == DISPARITY and inverse is not None:
        disparity = inverse_to_disparity(inverse, column.size)
        return encode_disparity(floor_disparity(disparity, column.quantised))
    assert scores is not None
    if column.form == IDS:
        return encode_ids(scores.ids(column.size))
    if column.form == TOP_K:
        return encode_top_k(*scores.top_k(column.shape[0], column.size))
    if column.form == LOGITS:
        return scores.stored_logits(column.size)
    return encode_disparity(floor_disparity(scores.disparity_map(column.size), column.quantised))


def _check_finite(values: Tensor | None, model: str, camera: str) -> None:
    if values is not None and values.is_floating_point() and not bool(values.isfinite().all()):
        raise ValueError(
            f"{model!r} returned NaN or infinite for camera {camera!r}; damaged weights, or it needs float32."
        )
