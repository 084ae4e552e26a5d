# SPDX-License-Identifier: Apache-2.0
"""Choose classes by the task sentence: among a segmenter's own, or as prompts of an open-vocabulary one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lerobot_processor_so101.perception.deferred import Features
from lerobot_processor_so101.perception.instruction import Vocabulary, noun_phrases
from lerobot_processor_so101.steps.perception import LiveSource


def mentioned_ids(sentences: Sequence[str], vocabulary: Vocabulary | None, count: int) -> Tensor:
    """Return the ids of the classes that each sentence mentions, (B, K) int64, -1 for none.

    Args:
        sentences: B sentences.
        vocabulary: the class names; None if the nouns of each sentence are its classes 0, 1, ...
        count: K; the first K classes of a sentence are kept.
    """
    ids = torch.full((len(sentences), count), -1)
    for row, sentence in zip(ids, sentences, strict=True):
        found = vocabulary.mentioned(sentence) if vocabulary else range(len(noun_phrases(sentence)))
        row[: len(found)] = torch.tensor(found[:count], dtype=torch.long)
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
