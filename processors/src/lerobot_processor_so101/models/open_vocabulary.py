# SPDX-License-Identifier: Apache-2.0
"""Segmenters with free-text classes, so that an instruction can choose the classes.

Such a model predicts for each text separately the probability that a pixel shows it. Class 0, "background",
has the remaining probability: 1 - the largest. So a pixel gets the class of a text that is likelier than not.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, CLIPSegForImageSegmentation, CLIPSegProcessor, Sam3Model, Sam3Processor

from ..perception.scores import Scores
from .segmenter import Segmenter

BACKGROUND = "background"


class OpenVocabularySegmenter(Segmenter):
    """A segmenter with free-text classes; its processor is for images and texts.

    Raises:
        ValueError: if there are no classes, or one is given twice, or is too long.
    """

    def __init__(self, name: str, model: Any, processor: Any, classes: Sequence[str]) -> None:
        super().__init__(name, model, processor.image_processor)
        self.tokenizer = processor.tokenizer
        self._set_classes(classes)

    def _set_classes(self, classes: Sequence[str]) -> None:
        texts = [text.strip() for text in classes]
        if not texts or not all(texts) or len({BACKGROUND, *texts}) != len(texts) + 1:
            raise ValueError(
                f"segmenter {self.name!r} takes free text: found classes = {list(classes)}, expected "
                f"different texts such as ['red cube', 'gripper'], none empty or {BACKGROUND!r} (which is "
                "class 0)."
            )
        self.texts = texts
        self.tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        limit = self.model.config.text_config.max_position_embeddings
        length = self.tokens["input_ids"].shape[1]
        if length > limit:
            raise ValueError(
                f"segmenter {self.name!r} reads at most {limit} tokens per text, found {length} in the "
                f"longest of {texts}. Shorten it."
            )

    def with_classes(self, classes: Sequence[str]) -> "OpenVocabularySegmenter":
        """Return a segmenter with other classes, checked as in the constructor, that shares the model."""
        other = copy.copy(self)
        other._set_classes(classes)
        return other

    @property
    def class_names(self) -> tuple[str, ...]:
        """The background and the texts."""
        return (BACKGROUND, *self.texts)

    def score(self, inputs: BatchFeature) -> Scores:
        """Return the probability of the background and of each text at each pixel."""
        probabilities = self.text_probabilities(inputs["pixel_values"]).float()  # (B, texts, h, w)
        background = 1 - probabilities.amax(1, keepdim=True)
        return Scores(torch.cat([background, probabilities], 1), "probs", self.class_names)

    def text_probabilities(self, pixel_values: Tensor) -> Tensor:
        """Return the probability of each text at each pixel, (B, texts, h, w)."""
        raise NotImplementedError


class CLIPSegSegmenter(OpenVocabularySegmenter):
    """CLIPSeg: fast and coarse. Images are encoded once, and its small decoder runs for each text."""

    def text_probabilities(self, pixel_values: Tensor) -> Tensor:
        """Decode every image for every text, in one batch."""
        batch, texts = len(pixel_values), len(self.texts)
        # 1. encode texts: (texts, D)
        tokens = self.tokens.to(pixel_values.device)
        conditions = self.model.get_conditional_embeddings(batch_size=texts, **tokens)
        # 2. encode images: hidden states (B, N, D); entry 0 is the input of the first layer
        hidden = self.model.clip.get_image_features(
            pixel_values, interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states
        layers = [hidden[layer + 1].repeat_interleave(texts, 0) for layer in self.model.extract_layers]
        # 3. decode: (B * texts, h, w) -> (B, texts, h, w)
        logits = self.model.decoder(layers, conditions.repeat(batch, 1)).logits
        return logits.reshape(batch, texts, *logits.shape[-2:]).sigmoid()


class Sam3Segmenter(OpenVocabularySegmenter):
    """SAM 3: sharp and slow. Images are encoded once, then decoded for each text."""

    def text_probabilities(self, pixel_values: Tensor) -> Tensor:
        """Decode every text from the same vision features."""
        vision = self.model.get_vision_features(pixel_values=pixel_values)
        tokens = self.tokens.to(pixel_values.device)
        probabilities = []
        for ids, mask in zip(tokens["input_ids"], tokens["attention_mask"], strict=True):
            outputs = self.model(
                vision_embeds=vision,
                input_ids=ids.expand(len(pixel_values), -1),
                attention_mask=mask.expand(len(pixel_values), -1),
            )
            presence = outputs.presence_logits.float().sigmoid()[..., None, None]
            probabilities.append(outputs.semantic_seg.float().sigmoid() * presence)
        return torch.cat(probabilities, 1)


# Segmenter, model and processor classes, by model type.
OPEN_VOCABULARY: dict[str, tuple[type[OpenVocabularySegmenter], Any, Any]] = {
    "clipseg": (CLIPSegSegmenter, CLIPSegForImageSegmentation, CLIPSegProcessor),
    "sam3": (Sam3Segmenter, Sam3Model, Sam3Processor),
    # the published SAM 3, which contains the detector
    "sam3_video": (Sam3Segmenter, Sam3Model, Sam3Processor),
}
