# SPDX-License-Identifier: Apache-2.0
"""The processor step that adds segvla's scores: precomputed, observed, or from a live segmenter."""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from lerobot.processor import ProcessorStepRegistry, RobotObservation
from torch import Tensor

from lerobot_processor_so101 import OBSERVED, Scores, image_key, seg_image_key
from lerobot_processor_so101.perception.deferred import Features
from lerobot_processor_so101.perception.instruction import Vocabulary, task_sentences
from lerobot_processor_so101.steps.perception import LiveSource, PerceptionStep, Source

from .class_choice import PromptedSegmenter, mentioned_ids
from .score_decoding import ScoreDecoder

MENTIONED = "observation.segmentation_mentioned"

_NO_SENTENCE = (
    "segmentation_from_instruction: found no task sentence. Give one: `--task='Put the red cube into "
    "the bowl.'` (lerobot-rollout), or record the dataset with one."
)

logger = logging.getLogger(__name__)


def missing_scores(key: str, camera: str) -> str:
    """Return the message about required scores that are missing."""
    return (
        f"segmentation: found no {key!r}, the scores of {camera!r}. Precompute them (`so101-precompute`), "
        "run a segmenter live (`--policy.segmenter=workbench`), or act as SmolVLA without them: "
        "`--policy.segmentation_required=false`."
    )


@ProcessorStepRegistry.register("segvla_add_segmentation")
@dataclass
class SegVLAAddSegmentationStep(PerceptionStep):
    """Add the scores of every camera under the keys of segvla's feature map; see `PerceptionStep`.

    Attributes:
        segmenter: as in `SegmentationProcessorStep`; empty if scores are only precomputed.
        classes: free-text classes of an open-vocabulary segmenter.
        keys: keys of the scores by camera.
        kind: as in `SegVLAConfig.segmentation_kind`; live scores are converted as `so101-precompute` does.
        class_names: position = id.
        from_instruction: also add `observation.segmentation_mentioned`, (B, K): ids of the classes that each
            task sentence mentions, -1 for none. An open-vocabulary segmenter without `classes` is prompted
            with the things of each sentence instead, which are then its K classes.
        synonyms: other words for classes.
        max_mentions: K.
        required: raise an error if scores are missing.
        top_k: classes that are kept of live scores of kind `top_k`.
        disparity, whole: not used; saved steps contain them.
    """

    segmenter: str = ""
    classes: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    kind: str = "ids"
    class_names: list[str] = field(default_factory=list)
    from_instruction: bool = False
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    max_mentions: int = 4
    required: bool = True
    top_k: int = 10
    disparity: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if self.segmenter == OBSERVED and self.kind != "ids":
            raise ValueError(
                f"segmentation_kind: found {self.kind!r}, expected 'ids' for masks of the observation."
            )
        self._decoder = ScoreDecoder(self.kind, self.size, self.class_names, self.top_k)
        words = (self.class_names, self.synonyms, "segmentation_synonyms")
        self._vocabulary = Vocabulary(*words) if self.from_instruction else None
        self._warned = False
        self.set_sources(
            self.segmenter,
            stored=[Source(self.keys.__getitem__, self._decoder.read)],
            observed=Source(seg_image_key, self._decoder.read_ids),
            live=LiveSource(self._load, "segment", self._to_features, self.identity),
        )

    @cached_property
    def prompted_by_sentence(self) -> bool:
        """Whether each sentence is the prompt of an open-vocabulary segmenter."""
        from lerobot_processor_so101.models import is_open_vocabulary

        if not self.from_instruction or self.classes or self.segmenter in ("", OBSERVED):
            return False
        return is_open_vocabulary(self.segmenter)

    def _load(self) -> Any:
        from lerobot_processor_so101.models import make_segmenter

        placeholder = ["object"] if self.prompted_by_sentence else []  # the prompts replace it
        return make_segmenter(self.segmenter, self.classes or placeholder)

    def _to_features(self, camera: str, scores: Scores) -> Features:
        return {self.keys[camera]: self._decoder.decode(scores)}

    @torch.no_grad()
    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add scores, deferred if a model must run, and the classes that the sentences mention.

        Raises:
            ValueError: if scores are missing or malformed.
        """
        missing = [camera for camera, key in self.keys.items() if key not in observation]
        if missing and not self.segmenter:
            key = self.keys[missing[0]]
            if self.required:
                raise ValueError(missing_scores(key, image_key(missing[0])))
            if not self._warned:
                logger.warning("segmentation: no %r, so segvla acts as SmolVLA without cues.", key)
                self._warned = True
            return observation
        if not self.from_instruction:
            return super().observation(observation)
        sentences = task_sentences(self.transition, _NO_SENTENCE)
        if self.prompted_by_sentence and missing:
            result = dict(observation)
            assert self.live is not None
            runner = PromptedSegmenter(self.live, self.keys, sentences, self.max_mentions)
            self.add_live(result, self.cameras, runner)
        else:
            result = super().observation(observation)
        device = next(value.device for value in observation.values() if isinstance(value, Tensor))
        vocabulary = None if self.prompted_by_sentence else self._vocabulary
        result[MENTIONED] = mentioned_ids(sentences, vocabulary, self.max_mentions).to(device)
        return result
