# SPDX-License-Identifier: Apache-2.0
"""Decode segmentation scores, precomputed or from a live segmenter, to the tensors that segvla reads."""

from collections.abc import Sequence

from lerobot.processor import RobotObservation
from torch import Tensor

from lerobot_processor_so101 import Scores
from lerobot_processor_so101.perception.stored import decode_top_k, encode_top_k
from lerobot_processor_so101.steps.segmentation import IdReader


class ScoreDecoder:
    """Decode scores of one kind to ids, (B, h, w), or scores, (B, C, h, w), equal live and precomputed.

    Args:
        kind: as in `SegVLAConfig.segmentation_kind`.
        size: (h, w) of live scores.
        class_names: names of the C classes; position = id.
        top_k: classes that are kept of live scores of kind `top_k`.
    """

    def __init__(self, kind: str, size: tuple[int, int], class_names: Sequence[str], top_k: int) -> None:
        self._kind, self._size, self._classes, self._top_k = kind, size, len(class_names), top_k
        self.read_ids = IdReader(size, class_names)

    def read(self, observation: RobotObservation, key: str) -> Tensor:
        """Decode precomputed scores.

        Raises:
            ValueError: if class ids or top-k scores are malformed.
        """
        if self._kind == "ids":
            return self.read_ids(observation, key)
        scores = observation[key]
        if self._kind == "top_k":
            side = round((scores.shape[-1] - 1) ** 0.5)
            return self._to_dense(*decode_top_k(scores, (side, side)))
        return scores

    def decode(self, scores: Scores) -> Tensor:
        """Decode the output of a segmenter as `so101-precompute` would store it."""
        match self._kind:
            case "ids":
                return scores.ids(self._size)
            case "top_k":
                stored = encode_top_k(*scores.top_k(self._top_k, self._size))
                return self._to_dense(*decode_top_k(stored, self._size))
            case "logits":
                return scores.stored_logits(self._size)
            case "log_scores":
                return scores.as_logits()
        return scores.as_probs()

    def _to_dense(self, ids: Tensor, probabilities: Tensor) -> Tensor:
        """(..., k) ids and (..., k, h, w) probabilities -> (..., C, h, w), zero for all other classes."""
        shape = (*ids.shape[:-1], self._classes, *probabilities.shape[-2:])
        index = ids[..., None, None].expand_as(probabilities)
        return probabilities.new_zeros(shape).scatter_(-3, index, probabilities)
