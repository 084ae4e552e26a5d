# SPDX-License-Identifier: Apache-2.0
"""One name, one segmenter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

from ..perception_model import load_config, load_model, load_processor
from .base import Segmenter
from .huggingface import UNIVERSAL, SemanticSegmenter, universal
from .open_vocabulary import BACKGROUND, OPEN_VOCABULARY, open_vocabulary

WORKBENCH = "workbench"
_WORKBENCH_FOLDER = Path(__file__).resolve().parents[1] / "weights" / "workbench"


def is_open_vocabulary(name: str) -> bool:
    """Whether a segmenter's classes are free text.

    Raises:
        ValueError: no such model.
    """
    return load_config(_folder(name)).model_type in OPEN_VOCABULARY


def class_names_of(name: str, classes: Sequence[str] = ()) -> tuple[str, ...]:
    """Class names of a segmenter, without loading it.

    Args:
        name, classes: as for `make_segmenter`.

    Raises:
        ValueError: no such model.
    """
    config = load_config(_folder(name))
    if config.model_type in OPEN_VOCABULARY:
        return (BACKGROUND, *classes)
    labels: Any = config.id2label
    return tuple(labels[id_] for id_ in sorted(labels))


def make_segmenter(name: str = WORKBENCH, classes: Sequence[str] = ()) -> Segmenter:
    """Load a segmenter, on the CPU; it follows its pictures to their device.

    Args:
        name: a Hub id or folder of a semantic, universal or open-vocabulary segmenter of transformers, or
            "workbench", the small one that comes with this package and needs no download.
        classes: what an open-vocabulary segmenter is to look for, in free text.

    Raises:
        ValueError: no such model, a model that does not segment, or classes where they cannot be chosen.
    """
    folder = _folder(name)
    config = load_config(folder)
    if config.model_type in OPEN_VOCABULARY:
        return open_vocabulary(name, folder, config.model_type, classes)
    if classes:
        raise ValueError(
            f"segmenter {name!r} ({config.model_type}) has fixed classes, found classes = {list(classes)}. Leave them "
            f"out, or take an open-vocabulary model ({', '.join(OPEN_VOCABULARY)})."
        )
    if config.model_type in UNIVERSAL:
        model = load_model(folder, AutoModelForUniversalSegmentation)
        return universal(name, model, load_processor(folder))
    if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        model = load_model(folder, AutoModelForSemanticSegmentation)
        return SemanticSegmenter(name, model, load_processor(folder))
    raise ValueError(
        f"segmenter {name!r}: found a {config.model_type!r} model, expected a semantic one (segformer, upernet, "
        f"efficientvit_fpn, ...), a universal one ({', '.join(UNIVERSAL)}) or an open-vocabulary one "
        f"({', '.join(OPEN_VOCABULARY)})."
    )


def _folder(name: str) -> str:
    return _workbench() if name == WORKBENCH else name


def _workbench() -> str:
    if not _WORKBENCH_FOLDER.is_dir():
        raise ValueError(
            f"segmenter {WORKBENCH!r}: found no weights in {_WORKBENCH_FOLDER}. Install the package with its data, or "
            "name a model of your own (`so101-train-segmenter` makes one)."
        )
    return str(_WORKBENCH_FOLDER)
