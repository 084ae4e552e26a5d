# SPDX-License-Identifier: Apache-2.0
"""What a segmenter would output if it made no mistake, from the masks and the depth of a simulator.

A policy that is trained on such features runs the segmenter on RGB images afterwards: from simulation to
webcams, without rendering RGB for its demonstrations and without running a model on them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..models import make_segmenter
from ..perception.disparity import depth_to_disparity
from ..perception.keys import depth_image_key, disparity_key, seg_image_key, seg_key
from ..perception.stored import encode_disparity
from .columns import DISPARITY, Column
from .perception import IDS
from .source import Source

_REST = "background"  # what the segmenter has no class for
_HINT = "Record them with `so101-demos --seg=true --depth=true`."


@dataclass(frozen=True)
class ArrayColumn:
    """A feature to store as an array.

    Attributes:
        key: its key in the copy.
        source: key of the values in the source.
        feature: its description, as in LeRobot's `info.json`.
        convert: makes values (N, 1, h, w) of those of the source; None keeps them.
    """

    key: str
    source: str
    feature: dict[str, Any]
    convert: Callable[[Tensor], Tensor] | None = None


def simulated_columns(source: Source, name: str) -> list[ArrayColumn]:
    """Return class ids and disparity of every camera, as if a segmenter of `make_segmenter` had made them.

    Raises:
        ValueError: if there is no such segmenter, or the dataset lacks named class ids or depth.
    """
    segmenter, columns = make_segmenter(name), []
    classes = segmenter.class_map
    for camera in _cameras(source):
        masks = seg_image_key(camera)
        size: tuple[int, int] = tuple(source.features[masks]["shape"][:2])
        ids = [classes.id(own if own in classes.names else _REST) for own in _class_names(source, masks)]
        to_ids = partial(_to_ids, ids=torch.tensor(ids))
        outputs: list[tuple[str, str, str, Callable]] = [(seg_key(camera), masks, IDS, to_ids)]
        if segmenter.predicts_disparity:
            outputs.append((disparity_key(camera), depth_image_key(camera), DISPARITY, _to_disparity))
        for key, image, form, convert in outputs:
            if image not in source.features:
                raise ValueError(
                    f"{image}: missing in {source.root}, expected depth, since {name!r} predicts disparity. "
                    f"{_HINT}"
                )
            feature = Column(key, camera, form, size, (*size, 1), segmenter.identity, size).feature()
            feature["info"]["simulated"] = True
            columns.append(ArrayColumn(key, image, feature, convert))
    return columns


def _cameras(source: Source) -> list[str]:
    """Return the names of the cameras with masks."""
    before, after = seg_image_key("|").split("|")
    keys = [key for key in source.meta.depth_keys if key.startswith(before) and key.endswith(after)]
    if not keys:
        raise ValueError(
            f"--segmenter: found no masks of a simulator in {source.root}, expected "
            f"`{seg_image_key('<camera>')}`. {_HINT}"
        )
    return [key.removeprefix(before).removesuffix(after) for key in keys]


def _class_names(source: Source, key: str) -> list[str]:
    names = (source.features[key].get("info") or {}).get("class_names")
    if names is None:
        raise ValueError(
            f"{key}: found masks without class names in {source.root}, expected those of a simulator. {_HINT}"
        )
    return names


def _to_ids(masks: Tensor, ids: Tensor) -> Tensor:
    """Replace the simulator's ids (N, 1, h, w) by the segmenter's."""
    return ids[masks.long()]


def _to_disparity(depth: Tensor) -> Tensor:
    """Convert depth (N, 1, h, w) to disparity as it is stored."""
    return encode_disparity(depth_to_disparity(depth.squeeze(-3)))
