# SPDX-License-Identifier: Apache-2.0
"""The models of `so101-precompute`, and what of their answers is stored."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..disparity import inverse_to_disparity
from ..identity import ModelIdentity
from ..keys import disparity_key, seg_key, seg_logits_key, seg_top_k_key
from ..scores import Scores
from ..segmenters import make_segmenter
from ..stored import cut_off, encode_disparity, encode_ids, encode_top_k
from .columns import LOGITS, Column
from .config import FROM_SEGMENTER, PrecomputeConfig
from .models import Models


class PerceptionModels(Models):
    """A segmenter, a depth model, or both.

    Args:
        config: names of the models and what to store.
        rank: number of this worker; several workers on one machine take turns at its GPUs.

    Raises:
        ValueError: a model that is unknown or cannot give what was asked for.
    """

    def __init__(self, config: PrecomputeConfig, rank: int = 0) -> None:
        super().__init__(config.device, config.batch_size, rank)
        self.config = config
        self.segmenter = make_segmenter(config.segmenter, config.classes) if config.segmenter else None
        self.estimator: Any = None
        if config.depth == FROM_SEGMENTER and self.segmenter and not self.segmenter.gives_disparity:
            raise ValueError(
                f"--depth=segmenter: segmenter {config.segmenter!r} has no disparity head. Name a depth model."
            )
        if config.depth and config.depth != FROM_SEGMENTER:
            from ..depth_models import make_depth_estimator

            self.estimator = make_depth_estimator(config.depth)
        if self.segmenter and len(self.segmenter.class_names) > 256:
            raise ValueError(
                f"--segmenter: {config.segmenter!r} has {len(self.segmenter.class_names)} classes, expected at most 256."
            )

    @property
    def identities(self) -> list[ModelIdentity]:
        """Who these models are."""
        return [model.identity for model in (self.segmenter, self.estimator) if model is not None]

    def columns(self, pictures: Mapping[str, tuple[int, int]]) -> list[Column]:
        """What is stored.

        Args:
            pictures: their sizes (h, w), by camera.
        """
        return [column for camera, size in pictures.items() for column in self._of(camera, size)]

    def _of(self, camera: str, pictures: tuple[int, int]) -> list[Column]:
        config, columns = self.config, []
        if self.segmenter is not None:
            identity = self.segmenter.identity
            classes = len(self.segmenter.class_names)
            grid, side = config.grid, config.logits_size
            forms = {
                "ids": (seg_key(camera), config.size, (*config.size, 1)),
                "top_k": (
                    seg_top_k_key(camera),
                    (grid, grid),
                    (min(config.top_k, classes), 1 + grid * grid, 1),
                ),
                LOGITS: (seg_logits_key(camera), (side, side), (classes, side, side)),
            }
            columns = [
                Column(key, camera, form, size, shape, identity, pictures)
                for form, (key, size, shape) in forms.items()
                if form in config.forms
            ]
        if config.depth:
            columns.append(
                Column(
                    disparity_key(camera),
                    camera,
                    "disparity",
                    config.size,
                    (*config.size, 1),
                    self.identities[-1],  # the depth model's, or the segmenter's where there is none
                    pictures,
                    config.whole_disparity,
                )
            )
        return columns

    @torch.no_grad()
    def perceive(self, pictures: Mapping[str, Tensor], columns: Sequence[Column]) -> dict[str, Tensor]:
        """Look at one batch of all cameras, with one call of each model.

        Args:
            pictures: (B, 3, H, W) in [0, 1], by camera.
            columns: what is stored.

        Returns:
            By key: (B, 1, h, w) int32, or (B, C, h, w) float16 for logits; on the CPU.

        Raises:
            ValueError: pictures or answers with NaN.
        """
        images = [frames.to(self.device) for frames in pictures.values()]
        scores: dict[str, Scores] = {}
        inverse: dict[str, Tensor] = {}
        if self.segmenter is not None:
            scores = dict(zip(pictures, self.segmenter.segment(images), strict=True))
            for camera, found in scores.items():
                _check_finite(found.values, self.segmenter.name, camera)
                if found.disparity is not None:
                    _check_finite(found.disparity, self.segmenter.name, camera)
        if self.estimator is not None:
            inverse = dict(zip(pictures, self.estimator.estimate(images), strict=True))
            for camera, depth in inverse.items():
                _check_finite(depth, self.estimator.name, camera)
        return {
            column.key: _stored(column, scores.get(column.camera), inverse.get(column.camera)).cpu()
            for column in columns
        }


def _stored(column: Column, scores: Scores | None, inverse: Tensor | None) -> Tensor:
    if inverse is not None and column.form == "disparity":
        return encode_disparity(cut_off(inverse_to_disparity(inverse, column.size), column.whole))
    assert scores is not None
    if column.form == "ids":
        return encode_ids(scores.ids(column.size))
    if column.form == "top_k":
        return encode_top_k(*scores.top_k(column.shape[0], column.size))
    if column.form == LOGITS:
        return scores.stored_logits(column.size)
    return encode_disparity(cut_off(scores.disparity_map(column.size), column.whole))


def _check_finite(values: Tensor, model: str, camera: str) -> None:
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise ValueError(
            f"{model!r} answered NaN or infinite for camera {camera!r}; its weights are damaged, or it needs float32."
        )
