# SPDX-License-Identifier: Apache-2.0
"""Segmenters whose classes are free text, so that an instruction can choose what is segmented.

Such a model answers each text by itself: how likely is this pixel a "red cube"? Class 0, "background", is what no
text claims: 1 - the best of them. So a pixel belongs to a text only where that is likelier than not.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, CLIPSegForImageSegmentation, CLIPSegProcessor, Sam3Model, Sam3Processor

from ..perception_model import load_model, local_folder
from ..scores import ScoreKind, Scores
from .base import Segmenter

BACKGROUND = "background"


class OpenVocabularySegmenter(Segmenter):
    """Free-text classes.

    Args:
        name: Hub id or folder.
        model: the model.
        processor: its processor, for pictures and texts.
        classes: what to look for.

    Raises:
        ValueError: no classes, one twice, or one too long.
    """

    kind: ScoreKind = "probs"

    def __init__(self, name: str, model: Any, processor: Any, classes: Sequence[str]) -> None:
        super().__init__(name, model, processor.image_processor)
        self.tokenizer = processor.tokenizer
        self._read(classes)

    def _read(self, classes: Sequence[str]) -> None:
        texts = [text.strip() for text in classes]
        if not texts or not all(texts) or len({BACKGROUND, *texts}) != len(texts) + 1:
            raise ValueError(
                f"segmenter {self.name!r} takes free text: found classes = {list(classes)}, expected different texts "
                f"such as ['red cube', 'gripper'], none empty or {BACKGROUND!r} (which is class 0)."
            )
        self.texts = texts
        self.tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        limit = self.model.config.text_config.max_position_embeddings
        if self.tokens["input_ids"].shape[1] > limit:
            raise ValueError(
                f"segmenter {self.name!r} reads at most {limit} tokens per text, found "
                f"{self.tokens['input_ids'].shape[1]} in the longest of {texts}. Shorten it."
            )

    def asked(self, classes: Sequence[str]) -> "OpenVocabularySegmenter":
        """The same model, looking for something else.

        Raises:
            ValueError: as for the constructor.
        """
        other = copy.copy(self)
        other._read(classes)
        return other

    @property
    def class_names(self) -> tuple[str, ...]:
        """The background and the texts."""
        return (BACKGROUND, *self.texts)

    def score(self, inputs: BatchFeature) -> Scores:
        """Probability of each text, and of none, at each pixel."""
        probabilities = self.text_probabilities(inputs["pixel_values"]).float()  # (B, texts, h, w)
        background = 1 - probabilities.amax(1, keepdim=True)
        return Scores(torch.cat([background, probabilities], 1), self.kind, self.class_names)

    def text_probabilities(self, pixel_values: Tensor) -> Tensor:
        """How likely each pixel shows each text, (B, texts, h, w)."""
        raise NotImplementedError


class CLIPSegSegmenter(OpenVocabularySegmenter):
    """CLIPSeg: quick and coarse. Pictures are looked at once, and its small decoder runs for each text."""

    def text_probabilities(self, pixel_values: Tensor) -> Tensor:
        """Every text against every picture, in one batch of the decoder."""
        count, texts = len(pixel_values), len(self.texts)
        tokens = self.tokens.to(pixel_values.device)
        asked = self.model.get_conditional_embeddings(batch_size=texts, **tokens)  # (texts, D)
        seen = self.model.clip.get_image_features(
            pixel_values, interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states
        # Layer i is entry i + 1: the first entry is what goes into the first layer.
        layers = [seen[layer + 1].repeat_interleave(texts, 0) for layer in self.model.extract_layers]
        logits = self.model.decoder(layers, asked.repeat(count, 1)).logits
        return logits.reshape(count, texts, *logits.shape[-2:]).sigmoid()


class Sam3Segmenter(OpenVocabularySegmenter):
    """SAM 3: sharp and slow. Pictures are looked at once, then asked about each text."""

    def text_probabilities(self, pixel_values: Tensor) -> Tensor:
        """One decoder pass per text over the same vision features."""
        vision = self.model.get_vision_features(pixel_values=pixel_values)
        tokens = self.tokens.to(pixel_values.device)
        found = []
        for ids, mask in zip(tokens["input_ids"], tokens["attention_mask"], strict=True):
            outputs = self.model(
                vision_embeds=vision,
                input_ids=ids.expand(len(pixel_values), -1),
                attention_mask=mask.expand(len(pixel_values), -1),
            )
            found.append(
                outputs.semantic_seg.float().sigmoid()
                * outputs.presence_logits.float().sigmoid()[..., None, None]
            )
        return torch.cat(found, 1)


OPEN_VOCABULARY: dict[str, tuple[type[OpenVocabularySegmenter], Any, Any]] = {
    "clipseg": (CLIPSegSegmenter, CLIPSegForImageSegmentation, CLIPSegProcessor),
    "sam3": (Sam3Segmenter, Sam3Model, Sam3Processor),
    "sam3_video": (
        Sam3Segmenter,
        Sam3Model,
        Sam3Processor,
    ),  # what SAM 3 is published as; the detector is in it
}


def open_vocabulary(
    name: str, folder: str, model_type: str, classes: Sequence[str]
) -> OpenVocabularySegmenter:
    """Load an open-vocabulary segmenter from a folder or the Hub."""
    segmenter, model, processor = OPEN_VOCABULARY[model_type]
    return segmenter(
        name, load_model(folder, model), processor.from_pretrained(local_folder(folder)), classes
    )
