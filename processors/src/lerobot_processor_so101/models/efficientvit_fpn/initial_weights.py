# SPDX-License-Identifier: Apache-2.0
"""Initial weights of a training."""

from __future__ import annotations

import logging
from pathlib import Path

import timm
from transformers import AutoModelForSemanticSegmentation

from .lightning import import_lightning
from .modeling_efficientvit_fpn import FEATURE_LEVELS, EfficientViTFPNForSemanticSegmentation

logger = logging.getLogger(__name__)

IMAGENET, RANDOM = "imagenet", "none"


def initialise(model: EfficientViTFPNForSemanticSegmentation, init_from: str) -> None:
    """Initialise a new model in place.

    `init_from` is "imagenet" for timm's backbone, which is downloaded; "none" for random weights; or else a
    folder or Hub id of such a model, or a Lightning checkpoint. A head of other classes stays random.

    Raises:
        ValueError: if the weights cannot be loaded, or are those of another model.
    """
    if init_from == RANDOM:
        return
    if init_from == IMAGENET:
        _load_imagenet(model)
        return
    source = load_weights(init_from)
    state = source.state_dict()
    if source.config.id2label != model.config.id2label:
        state = {name: value for name, value in state.items() if not name.startswith("seg_head.")}
    state = {name: value for name, value in state.items() if name in model.state_dict()}
    # an option and no weight: that of the new model
    state |= {name: value for name, value in model.state_dict().items() if name == "is_single"}
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise ValueError(f"--init_from: {init_from} is of another shape: {error}") from None
    if missing:
        logger.warning("--init_from: %s has no %s; they stay random.", init_from, ", ".join(missing))


def load_weights(name: str) -> EfficientViTFPNForSemanticSegmentation:
    """Load a model of this kind from a folder, the Hub or a Lightning checkpoint.

    Raises:
        ValueError: if there is none.
    """
    if name.endswith(".ckpt"):
        return import_lightning(Path(name))
    try:
        model = AutoModelForSemanticSegmentation.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--init_from: {name!r} is neither {IMAGENET}, {RANDOM}, a .ckpt file nor a segmenter that can "
            f"be loaded. {str(error).splitlines()[0]}"
        ) from None
    if not isinstance(model, EfficientViTFPNForSemanticSegmentation):
        raise ValueError(
            f"--init_from: {name} is a {type(model).__name__}, expected "
            f"{EfficientViTFPNForSemanticSegmentation.__name__}."
        )
    return model


def _load_imagenet(model: EfficientViTFPNForSemanticSegmentation) -> None:
    try:
        backbone = timm.create_model(
            model.config.backbone, pretrained=True, features_only=True, out_indices=FEATURE_LEVELS
        )
    except Exception as error:  # without a network, the type depends on the installed libraries
        raise ValueError(
            f"--init_from=imagenet: the weights of {model.config.backbone} could not be downloaded "
            f"({type(error).__name__}). Connect once, or start from other weights or with --init_from=none."
        ) from error
    model.backbone.load_state_dict(backbone.state_dict())
