# SPDX-License-Identifier: Apache-2.0
"""Import checkpoints of the original segmenter, written by PyTorch Lightning. No pickle is executed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .configuration_efficientvit_fpn import CLASS_NAMES, EfficientViTFPNConfig
from .modeling_efficientvit_fpn import EfficientViTFPNForSemanticSegmentation

HYPER_PARAMETERS = ("num_classes", "lr", "weight_decay", "img_height", "img_width", "img_size", "loss_type")
UNUSED_CONVS = tuple(f"output_convs.{level}." for level in (1, 2, 3))
_LOSSES = ("iou", "ce")


def import_lightning(path: Path, unused_convs: bool = False) -> EfficientViTFPNForSemanticSegmentation:
    """Read a Lightning checkpoint of the original layout, and return the model in evaluation mode.

    Its `config.training` contains the file's name and hyper-parameters. `unused_convs` keeps the parameters
    of the unused output convolutions; outputs are the same.

    Raises:
        ValueError: if the file is no such checkpoint; the message names the key.
        FileNotFoundError: if there is no such file.
    """
    checkpoint = _read(path)
    hyper = _hyper_parameters(path, checkpoint)
    state = checkpoint["state_dict"]
    count = _number_of_classes(path, state, hyper)
    names = CLASS_NAMES if count == len(CLASS_NAMES) else [f"class_{id_}" for id_ in range(count)]
    config = EfficientViTFPNConfig(
        unused_convs=unused_convs,
        loss=hyper.get("loss_type", "iou"),
        id2label=dict(enumerate(names)),
        label2id={name: id_ for id_, name in enumerate(names)},
        training={"imported_from": path.name, **hyper},
    )
    model = EfficientViTFPNForSemanticSegmentation(config)
    _load(path, model, state)
    return model.eval()


def training_image_size(model: EfficientViTFPNForSemanticSegmentation) -> tuple[int, int]:
    """Return (height, width) of the training images of an imported model; by default 480x640."""
    hyper = model.config.training or {}
    side = hyper.get("img_size")
    return int(hyper.get("img_height", side or 480)), int(hyper.get("img_width", side or 640))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines()] or ["unreadable"]
        reason = next((line for line in lines if "GLOBAL" in line), lines[0])[:160]
        raise ValueError(
            f"{path}: refused. It is damaged, or holds Python objects beside tensors and numbers, which are "
            "never executed. Save state_dict and hyper_parameters only. "
            f"({type(error).__name__}: {reason})"
        ) from None
    for key in ("state_dict", "hyper_parameters"):
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), Mapping):
            raise ValueError(f"{path}: found no {key!r}, expected a Lightning checkpoint of the segmenter.")
    return checkpoint


def _hyper_parameters(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any]:
    hyper = dict(checkpoint["hyper_parameters"])
    for key, value in hyper.items():
        if key not in HYPER_PARAMETERS:
            known = ", ".join(HYPER_PARAMETERS)
            raise ValueError(f"{path}: hyper_parameters: found {key!r}, expected {known}.")
        expected = str if key == "loss_type" else int | float
        if not isinstance(value, expected) or isinstance(value, bool):
            raise ValueError(f"{path}: hyper_parameters: {key}: found {value!r}, expected {expected}.")
    if hyper.get("loss_type", "iou") not in _LOSSES:
        raise ValueError(
            f"{path}: hyper_parameters: loss_type: found {hyper['loss_type']!r}, expected one of {_LOSSES}."
        )
    return hyper


def _number_of_classes(path: Path, state: Mapping[str, Tensor], hyper: dict[str, Any]) -> int:
    head = state.get("seg_head.weight")
    if not isinstance(head, Tensor) or head.ndim != 4:
        raise ValueError(f"{path}: state_dict: found no seg_head.weight of four dimensions.")
    if hyper.get("num_classes", len(head)) != len(head):
        raise ValueError(
            f"{path}: hyper_parameters: num_classes: found {hyper['num_classes']}, expected {len(head)}, the "
            "rows of seg_head.weight."
        )
    return len(head)


def _load(path: Path, model: EfficientViTFPNForSemanticSegmentation, state: Mapping[str, Tensor]) -> None:
    """Load tensors of the expected names and shapes; only those of unused convolutions may be ignored."""
    expected = model.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: state_dict: {key}: found {type(value).__name__}, expected a tensor.")
        if key not in expected and not key.startswith(UNUSED_CONVS):
            raise ValueError(f"{path}: state_dict: found {key!r}, which the segmenter does not have.")
    for key, value in expected.items():
        if key not in state:
            raise ValueError(f"{path}: state_dict: found no {key!r}, which the segmenter needs.")
        if state[key].shape != value.shape:
            found, needed = tuple(state[key].shape), tuple(value.shape)
            raise ValueError(f"{path}: state_dict: {key}: found shape {found}, expected {needed}.")
        if not bool(state[key].isfinite().all()):
            raise ValueError(f"{path}: state_dict: {key}: found numbers that are not finite.")
    model.load_state_dict({key: state[key] for key in expected})
