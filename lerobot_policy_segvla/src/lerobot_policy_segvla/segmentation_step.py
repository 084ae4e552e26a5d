# SPDX-License-Identifier: Apache-2.0
"""The step that gives segvla its scores: precomputed, from the observation, or from a segmenter that looks live."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from lerobot.processor import ProcessorStepRegistry, RobotObservation, TransitionKey
from torch import Tensor

from lerobot_processor_so101 import OBSERVED, SegmentationProcessorStep, image_key
from lerobot_processor_so101.deferred import Features
from lerobot_processor_so101.keys import camera_image
from lerobot_processor_so101.stored import decode_top_k, encode_top_k

from .instruction import Vocabulary, noun_phrases

MENTIONED = "observation.segmentation_mentioned"

logger = logging.getLogger(__name__)


def missing_scores(key: str, camera: str) -> str:
    """What to do about scores that are required and not there."""
    return (
        f"segmentation: found no {key!r}, the scores of {camera!r}. Precompute them (`so101-precompute`), let a model "
        "look (`--policy.segmenter=workbench`), or act as SmolVLA without them: "
        "`--policy.segmentation_required=false`."
    )


@ProcessorStepRegistry.register("segvla_add_segmentation")
@dataclass
class SegVLAAddSegmentationStep(SegmentationProcessorStep):
    """Add the scores of every camera under the keys of segvla's feature map; see `PerceptionStep`.

    Attributes:
        keys: of the scores, by camera.
        kind: as in `SegVLAConfig.segmentation_kind`; live scores come in it too, made as `so101-precompute` makes them.
        segmenter: as in `SegmentationProcessorStep`; empty if scores only come precomputed.
        class_names: position = id.
        from_instruction: also add `observation.segmentation_mentioned`, (B, K): ids of the classes that each task
            sentence mentions, -1 for none. An open-vocabulary segmenter without `classes` is asked for the things of
            each sentence instead, and the K classes are these.
        synonyms: other words for classes.
        max_mentions: K.
        required: missing scores are an error.
        top_k: classes kept of live scores of kind `top_k`.
    """

    keys: dict[str, str] = field(default_factory=dict)
    kind: str = "ids"
    segmenter: str = ""
    class_names: list[str] = field(default_factory=list)
    from_instruction: bool = False
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    max_mentions: int = 4
    required: bool = True
    top_k: int = 10
    _told: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.segmenter:
            super().__post_init__()
        if self.segmenter == OBSERVED and self.kind != "ids":
            raise ValueError(
                f"segmentation_kind: found {self.kind!r}, expected 'ids', which is what comes with an observation."
            )
        self._vocabulary = Vocabulary(self.class_names, self.synonyms) if self.from_instruction else None

    @cached_property
    def asks_by_sentence(self) -> bool:
        """Whether each sentence tells the segmenter what to look for. Its configuration is read once."""
        from lerobot_processor_so101.segmenters import is_open_vocabulary

        if not self.from_instruction or self.classes or self.segmenter in ("", OBSERVED):
            return False
        return is_open_vocabulary(self.segmenter)

    def load(self) -> Any:
        """Load the segmenter."""
        from lerobot_processor_so101.segmenters import make_segmenter

        # An open-vocabulary segmenter must look for something; each sentence replaces it.
        return make_segmenter(self.segmenter, self.classes or (["object"] if self.asks_by_sentence else []))

    @torch.no_grad()
    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add scores, or the promise of them, and what the sentences mention.

        Raises:
            ValueError: scores are missing or malformed; the message names the key.
        """
        missing = [camera for camera, key in self.keys.items() if key not in observation]
        if missing and not self.segmenter:
            if self.required:
                raise ValueError(missing_scores(self.keys[missing[0]], image_key(missing[0])))
            if not self._told:
                logger.warning(
                    "segmentation: no %r, so segvla acts as SmolVLA without cues.", self.keys[missing[0]]
                )
                self._told = True
            return observation
        sentences = self._sentences() if self.from_instruction else []
        if self.asks_by_sentence and missing:
            result = self._ask_by_sentence(observation, sentences)
        else:
            result = super().observation(observation)
        if self.from_instruction:
            result[MENTIONED] = self._mentioned(sentences, observation)
        return result

    def feature_key(self, camera: str) -> str:
        """As the feature map says."""
        return self.keys[camera]

    def stored(self, observation: RobotObservation, key: str) -> Tensor:
        """Precomputed scores: ids (B, h, w) or (B, C, h, w)."""
        if self.kind == "ids":
            return super().stored(observation, key)
        if self.kind == "top_k":
            plane = observation[key]
            side = round((plane.shape[-1] - 1) ** 0.5)
            return self._dense(*decode_top_k(plane, (side, side)))
        return observation[key]

    def from_stored(self, plane: Tensor, key: str) -> Tensor:
        """Class ids (B, h, w), each the id of a class.

        Raises:
            ValueError: one is not.
        """
        first = key not in self._checked
        ids = super().from_stored(plane, key)
        if first and int(ids.max()) >= len(self.class_names):  # once: each check waits for the device
            raise ValueError(
                f"{key}: found class id {int(ids.max())}, expected 0 to {len(self.class_names) - 1} for the classes "
                f"{self.class_names}."
            )
        return ids

    from_observed = from_stored

    def perceive(self, frames: Sequence[Features]) -> list[Features]:
        """Segment; see `PerceptionStep.perceive`."""
        if self.kind == "ids":
            return super().perceive(frames)
        return [
            {
                self.keys[camera]: self._scores(scores).unflatten(0, shape)
                for camera, (scores, shape) in views.items()
            }
            for views in self.in_one_call(frames, self.model.segment)
        ]

    def _scores(self, scores: Any) -> Tensor:
        if self.kind == "top_k":
            return self._dense(*decode_top_k(encode_top_k(*scores.top_k(self.top_k, self.size)), self.size))
        if self.kind == "logits":
            return scores.stored_logits(self.size)
        return scores.as_logits() if self.kind == "log_scores" else scores.as_probs()

    def _dense(self, ids: Tensor, probabilities: Tensor) -> Tensor:
        """Probabilities of k classes as (..., C, h, w), zero for the others."""
        shape = (*ids.shape[:-1], len(self.class_names), *probabilities.shape[-2:])
        index = ids[..., None, None].expand_as(probabilities)
        return probabilities.new_zeros(shape).scatter_(-3, index, probabilities)

    def _sentences(self) -> list[str]:
        """The task of each sample."""
        data = self.transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        task = data.get("task")
        if task is None:
            raise ValueError(
                "segmentation_from_instruction: found no task sentence. Give one: `--task='Put the red cube into the "
                "bowl.'` (lerobot-rollout), or record the dataset with one."
            )
        return [task] if isinstance(task, str) else list(task)

    def _mentioned(self, sentences: list[str], observation: RobotObservation) -> Tensor:
        """Ids of the classes the sentences mention, (B, K), -1 for none."""
        ids = torch.full((len(sentences), self.max_mentions), -1)
        for row, sentence in zip(ids, sentences, strict=True):
            if self.asks_by_sentence:
                found = list(range(len(noun_phrases(sentence))))
            else:
                assert self._vocabulary is not None
                found = self._vocabulary.mentioned(sentence)
            found = found[: self.max_mentions]
            row[: len(found)] = torch.tensor(found, dtype=torch.long)
        device = next(value.device for value in observation.values() if isinstance(value, Tensor))
        return ids.to(device)

    def _ask_by_sentence(self, observation: RobotObservation, sentences: list[str]) -> RobotObservation:
        pictures = {camera: camera_image(observation, image_key(camera)) for camera in self.cameras}
        texts = [tuple(noun_phrases(sentence)[: self.max_mentions]) for sentence in sentences]
        result = dict(observation)
        self.ask(AskBySentence(self, texts), pictures, result)
        return result

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        own = (
            "keys", "kind", "class_names", "from_instruction", "synonyms", "max_mentions", "required", "top_k",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


@dataclass
class AskBySentence:
    """Asks an open-vocabulary segmenter for the things of each sample's sentence.

    Attributes:
        step: whose segmenter it is.
        texts: things, one tuple per sample.
    """

    step: SegVLAAddSegmentationStep
    texts: list[tuple[str, ...]]

    def perceive(self, frames: Sequence[Features]) -> list[Features]:
        """Probabilities of each thing, (B, K, h, w): one call of the model per different sentence."""
        return [self._one(pictures) for pictures in frames]

    def _one(self, pictures: Features) -> Features:
        flat = {camera: images.flatten(0, -4) for camera, images in pictures.items()}
        count = len(next(iter(flat.values())))
        texts = [text for text in self.texts for _ in range(count // len(self.texts))]
        found: Features = {}
        for asked in sorted({text for text in texts if text}):
            rows = torch.tensor([i for i, text in enumerate(texts) if text == asked])
            segmenter = self.step.model.asked(asked)
            answers = segmenter.segment([images[rows.to(images.device)] for images in flat.values()])
            for camera, scores in zip(flat, answers, strict=True):
                things = scores.values[:, 1:].float()  # without the background
                shape = (count, self.step.max_mentions, *things.shape[-2:])
                key = self.step.keys[camera]
                values = found.setdefault(key, things.new_zeros(shape))
                values[rows.to(values.device), : things.shape[1]] = things
        for camera, images in flat.items():
            key = self.step.keys[camera]
            if key not in found:  # no sentence names a thing
                found[key] = images.new_zeros(count, self.step.max_mentions, 1, 1)
            found[key] = found[key].unflatten(0, pictures[camera].shape[:-3])
        return found
