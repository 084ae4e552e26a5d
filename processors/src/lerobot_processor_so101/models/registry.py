# SPDX-License-Identifier: Apache-2.0
"""Load segmenters by name."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

from ..perception.class_map import ordered_labels
from .base import PACKAGED, load_config, load_pretrained
from .huggingface import UNIVERSAL, SemanticSegmenter, universal
from .open_vocabulary import BACKGROUND, OPEN_VOCABULARY
from .segmenter import Segmenter

WORKBENCH = PACKAGED[0]
_WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


def is_open_vocabulary(name: str) -> bool:
    """Return whether a segmenter's classes are free text.

    Raises:
        ValueError: if there is no such model.
    """
    return load_config(_folder(name)).model_type in OPEN_VOCABULARY


def class_names_of(name: str, classes: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the class names of a segmenter of `make_segmenter`, without loading its weights.

    Raises:
        ValueError: if there is no such model.
    """
    config = load_config(_folder(name))
    if config.model_type in OPEN_VOCABULARY:
        return (BACKGROUND, *classes)
    return ordered_labels(config)


def make_segmenter(name: str = WORKBENCH, classes: Sequence[str] = ()) -> Segmenter:
    """Load a segmenter on the CPU; it moves to the device of its images.

    Args:
        name: a Hub id or folder of a semantic, universal or open-vocabulary segmenter of transformers, or
            "workbench" or "sorting", the small ones in this package, which need no download.
        classes: free-text classes of an open-vocabulary segmenter.

    Raises:
        ValueError: if there is no such model, it does not segment, or its classes cannot be chosen.
    """
    folder = _folder(name)
    config = load_config(folder)
    if config.model_type in OPEN_VOCABULARY:
        segmenter, model_class, processor_class = OPEN_VOCABULARY[config.model_type]
        return segmenter(name, *load_pretrained(folder, model_class, processor_class), classes)
    if classes:
        raise ValueError(
            f"segmenter {name!r} ({config.model_type}) has fixed classes, found classes = {list(classes)}. "
            f"Leave them out, or use an open-vocabulary model ({', '.join(OPEN_VOCABULARY)})."
        )
    if config.model_type in UNIVERSAL:
        return universal(name, *load_pretrained(folder, AutoModelForUniversalSegmentation))
    if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        return SemanticSegmenter(name, *load_pretrained(folder, AutoModelForSemanticSegmentation))
    raise ValueError(
        f"segmenter {name!r}: found a {config.model_type!r} model, expected a semantic one (segformer, "
        f"upernet, efficientvit_fpn, ...), a universal one ({', '.join(UNIVERSAL)}) or an open-vocabulary "
        f"one ({', '.join(OPEN_VOCABULARY)})."
    )


def _folder(name: str) -> str:
    if name not in PACKAGED:
        return name
    folder = _WEIGHTS / name
    if not folder.is_dir():
        raise ValueError(
            f"segmenter {name!r}: found no weights in {folder}. Install the package with its data, or name a "
            "model of your own (`so101-train-segmenter` makes one)."
        )
    return str(folder)
