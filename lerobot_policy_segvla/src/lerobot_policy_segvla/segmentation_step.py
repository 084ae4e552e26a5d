# SPDX-License-Identifier: Apache-2.0
"""The processor step that adds segvla's scores: precomputed, observed, or from a live segmenter."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from lerobot.processor import ProcessorStepRegistry, RobotObservation
from torch import Tensor

from lerobot_processor_so101 import OBSERVED, Scores, image_key, seg_image_key
from lerobot_processor_so101.perception.deferred import Features
from lerobot_processor_so101.perception.instruction import Vocabulary, noun_phrases, task_sentences
from lerobot_processor_so101.perception.stored import decode_top_k, encode_top_k
from lerobot_processor_so101.steps.perception import LiveSource, PerceptionStep, Source
from lerobot_processor_so101.steps.segmentation import IdReader

MENTIONED = "observation.segmentation_mentioned"

_NO_SENTENCE = (
    "segmentation_from_instruction: found no task sentence. Give one: `--task='Put the red cube into "
    "the bowl.'` (lerobot-rollout), or record the dataset with one."
)

logger = logging.getLogger(__name__)


def missing_scores(key: str, camera: str) -> ValueError:
    """Return the error about required scores that are missing."""
    return ValueError(
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
        self._read_ids = IdReader(self.size, self.class_names)
        words = (self.class_names, self.synonyms, "segmentation_synonyms")
        self._vocabulary = Vocabulary(*words) if self.from_instruction else None
        self._warned = False
        self.set_sources(
            self.segmenter,
            stored=[Source(self.keys.__getitem__, self._read_stored)],
            observed=Source(seg_image_key, self._read_ids),
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

    def _read_stored(self, observation: RobotObservation, key: str) -> Tensor:
        """Decode precomputed scores to ids, (B, h, w), or scores, (B, C, h, w)."""
        if self.kind == "ids":
            return self._read_ids(observation, key)
        if self.kind != "top_k":
            return observation[key]
        side = round((observation[key].shape[-1] - 1) ** 0.5)
        return self._to_dense(observation[key], (side, side))

    def _to_features(self, camera: str, scores: Scores) -> Features:
        """Convert the output of a segmenter as `so101-precompute` would store it."""
        match self.kind:
            case "ids":
                values = scores.ids(self.size)
            case "top_k":
                values = self._to_dense(encode_top_k(*scores.top_k(self.top_k, self.size)), self.size)
            case "logits":
                values = scores.stored_logits(self.size)
            case "log_scores":
                values = scores.as_logits()
            case _:
                values = scores.as_probs()
        return {self.keys[camera]: values}

    def _to_dense(self, stored: Tensor, size: tuple[int, int]) -> Tensor:
        """Decode top-k scores to (..., C, h, w), zero for all other classes."""
        ids, probabilities = decode_top_k(stored, size)  # (..., k), (..., k, h, w)
        dense = probabilities.new_zeros(*ids.shape[:-1], len(self.class_names), *size)
        return dense.scatter_(-3, ids[..., None, None].expand_as(probabilities), probabilities)

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
                raise missing_scores(key, image_key(missing[0]))
            if not self._warned:
                logger.warning("segmentation: no %r, so segvla acts as SmolVLA without cues.", key)
                self._warned = True
            return observation
        if not self.from_instruction:
            return super().observation(observation)
        sentences = task_sentences(self.transition, _NO_SENTENCE)
        if self.prompted_by_sentence and missing:
            assert self.live is not None
            runner = PromptedSegmenter(self.live, self.keys, sentences, self.max_mentions)
            result = dict(observation)
            self.add_live(result, self.cameras, runner)
        else:
            result = super().observation(observation)
        device = next(value.device for value in observation.values() if isinstance(value, Tensor))
        result[MENTIONED] = self._mentioned(sentences).to(device)
        return result

    def _mentioned(self, sentences: list[str]) -> Tensor:
        """Return the ids of the classes that each sentence mentions, (B, K), -1 for none."""
        ids = torch.full((len(sentences), self.max_mentions), -1)
        vocabulary = None if self.prompted_by_sentence else self._vocabulary
        for row, sentence in zip(ids, sentences, strict=True):
            # the things of a prompt are its classes 0, 1, ...
            found = vocabulary.mentioned(sentence) if vocabulary else range(len(noun_phrases(sentence)))
            row[: len(found)] = torch.tensor(found[: self.max_mentions], dtype=torch.long)
        return ids


@dataclass
class PromptedSegmenter:
    """Segment the things that each sample's sentence names; implements `PerceptionRunner`.

    Attributes:
        source: an open-vocabulary segmenter.
        keys: keys of the scores by camera.
        sentences: B sentences, one per sample.
        count: K; the first K things of a sentence are segmented.
    """

    source: LiveSource
    keys: dict[str, str]
    sentences: list[str]
    count: int

    def run_perception(self, frames: Sequence[Features]) -> list[Features]:
        """Return probabilities of each thing, (B, K, h, w), with one call of the model per sentence."""
        return [self._segment(images) for images in frames]

    def _segment(self, images: Features) -> Features:
        # (B, 3, H, W) or (B, T, 3, H, W) -> (N, 3, H, W)
        flat = {camera: frames.flatten(0, -4) for camera, frames in images.items()}
        samples = len(next(iter(flat.values())))
        prompts = [tuple(noun_phrases(sentence)[: self.count]) for sentence in self.sentences]
        prompts = [prompt for prompt in prompts for _ in range(samples // len(prompts))]
        features: Features = {}
        for prompt in sorted({prompt for prompt in prompts if prompt}):
            rows = torch.tensor([row for row, other in enumerate(prompts) if other == prompt])
            segmenter = self.source.model.with_classes(prompt)
            outputs = segmenter.segment([frames[rows.to(frames.device)] for frames in flat.values()])
            for camera, scores in zip(flat, outputs, strict=True):
                things = scores.values[:, 1:].float()  # without the background
                shape = (samples, self.count, *things.shape[-2:])
                values = features.setdefault(self.keys[camera], things.new_zeros(shape))
                values[rows.to(values.device), : things.shape[1]] = things
        for camera, frames in flat.items():
            key = self.keys[camera]
            if key not in features:  # no sentence names a thing
                features[key] = frames.new_zeros(samples, self.count, 1, 1)
            features[key] = features[key].unflatten(0, images[camera].shape[:-3])
        return features
