# SPDX-License-Identifier: Apache-2.0
"""Columns to add to a dataset: one per camera and stored form."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
from datasets.features.features import numpy_to_pyarrow_listarray
from lerobot.datasets.feature_utils import get_hf_features_from_features

from ..perception.identity import ModelIdentity

DISPARITY, LOGITS, VECTOR = "disparity", "logits", "vector"


@dataclass(frozen=True)
class Column:
    """One column, a feature of the new dataset.

    Attributes:
        camera: camera of the images that it is computed from.
        form: ids, top_k, logits, disparity or vector.
        size: (h, w) of the map.
        shape: shape of one value: (height, width, 1) of an image, (C, h, w) of logits, (D,) of a vector.
        identity: of the model that computes it.
        image_size: (h, w) of the images that it is computed from.
        quantised: whether disparity is floored to integers.
    """

    key: str
    camera: str
    form: str
    size: tuple[int, int]
    shape: tuple[int, ...]
    identity: ModelIdentity
    image_size: tuple[int, int]
    quantised: bool = False

    def feature(self) -> dict[str, Any]:
        """Return the feature as LeRobot's `info.json` describes it."""
        info: dict[str, Any] = {"perception": self.identity.to_dict(), "form": self.form}
        info |= {"size": list(self.size), "pictures": list(self.image_size)}
        if self.quantised:
            info["whole"] = True
        if self.form == LOGITS:
            dtype, names = "float16", ["channels", "height", "width"]
        elif self.form == VECTOR:
            dtype, names = "float32", None
        else:
            dtype, names = "image", ["height", "width", "channels"]
            info = {"is_depth_map": True, "depth_unit": "mm", **info}
        return {"dtype": dtype, "shape": self.shape, "names": names, "info": info}

    @property
    def logits_bytes(self) -> int:
        """Bytes per frame of dense logits; 0 for the other forms, which are small."""
        return 2 * int(np.prod(self.shape)) if self.form == LOGITS else 0

    def encode(self, values: np.ndarray) -> pa.Array:
        """Encode integers (B, 1, h, w) below 65536, float16 logits (B, C, h, w) or float32 vectors (B, D)."""
        if self.form == VECTOR:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        if self.form == LOGITS:
            storage = numpy_to_pyarrow_listarray(values)
            return pa.ExtensionArray.from_storage(schema([self]).field(self.key).type, storage)
        images = pa.array([_png(plane) for plane in values[:, 0].astype(np.uint16)], pa.binary())
        return pa.StructArray.from_arrays([images, pa.nulls(len(values), pa.string())], ["bytes", "path"])


def schema(columns: Sequence[Column]) -> pa.Schema:
    """Return the Arrow schema of some columns."""
    return get_hf_features_from_features({column.key: column.feature() for column in columns}).arrow_schema


def _png(plane: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(plane).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Tally:
    """Integer sums over a column, which give exact statistics in whatever order frames are added."""

    frames: int = 0
    values: int = 0
    sum: int = 0
    squares: int = 0
    bytes: int = 0
    min: int = 65535
    max: int = 0

    def add(self, values: np.ndarray, encoded: pa.Array) -> None:
        """Add the frames of one batch, as stored values and as encoded."""
        part = Tally(frames=len(values), bytes=encoded.nbytes)
        if not np.issubdtype(values.dtype, np.floating):  # logits and vectors must never be normalised
            integers = values.astype(np.int64)
            part.values, part.min, part.max = integers.size, int(integers.min()), int(integers.max())
            part.sum, part.squares = int(integers.sum()), int(np.square(integers).sum())
        self.merge(part)

    def merge(self, other: "Tally") -> None:
        """Add the sums of another tally."""
        self.frames += other.frames
        self.values += other.values
        self.sum += other.sum
        self.squares += other.squares
        self.bytes += other.bytes
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)

    def stats(self) -> dict[str, Any]:
        """Return LeRobot's statistics of a one-channel image, (1, 1, 1) each."""
        std = max(self.squares * self.values - self.sum**2, 0) ** 0.5 / self.values
        values = {"min": self.min, "max": self.max, "mean": self.sum / self.values, "std": std}
        stats: dict[str, Any] = {name: [[[float(value)]]] for name, value in values.items()}
        return {**stats, "count": [self.frames]}
