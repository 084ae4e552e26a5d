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
    """One column.

    Attributes:
        key: key of the feature.
        camera: camera of the images that it is computed from.
        form: ids, top_k, logits, disparity or vector.
        size: (h, w) of the map.
        shape: shape of one value: (height, width, 1) of an image, (C, h, w) of logits, (D,) of a vector.
        identity: identity of the model that computes it.
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
        info: dict[str, Any] = {
            "perception": self.identity.to_dict(),
            "form": self.form,
            "size": list(self.size),
            "pictures": list(self.image_size),
        }
        if self.quantised:
            info["whole"] = True
        if self.form == LOGITS:
            dtype, names = "float16", ["channels", "height", "width"]
        elif self.form == VECTOR:
            dtype, names = "float32", None
        else:
            dtype, names = "image", ["height", "width", "channels"]
            info = {"is_depth_map": True, "depth_unit": "mm", **info}
        return {"dtype": dtype, "shape": list(self.shape), "names": names, "info": info}

    @property
    def logits_bytes(self) -> int:
        """Bytes per frame of dense logits; 0 for the other forms, which are small."""
        return 2 * int(np.prod(self.shape)) if self.form == LOGITS else 0

    def encode(self, values: np.ndarray) -> pa.Array:
        """Encode stored values for a Parquet file.

        Args:
            values: (B, 1, h, w) integers below 65536, (B, C, h, w) float16 for logits, or (B, D) float32.
        """
        if self.form == VECTOR:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        if self.form == LOGITS:
            storage = numpy_to_pyarrow_listarray(values)
            return pa.ExtensionArray.from_storage(schema([self]).field(self.key).type, storage)
        images = pa.array([_png(plane) for plane in values[:, 0].astype(np.uint16)], pa.binary())
        return pa.StructArray.from_arrays([images, pa.nulls(len(values), pa.string())], ["bytes", "path"])


def schema(columns: Sequence[Column]) -> pa.Schema:
    """Return the Arrow schema of some columns."""
    features = {column.key: {**column.feature(), "shape": column.shape} for column in columns}
    return get_hf_features_from_features(features).arrow_schema


def _png(plane: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(plane).save(buffer, "PNG")
    return buffer.getvalue()


class Tally:
    """Integer sums over a column, which give exact statistics in whatever order frames are added.

    Args:
        values: the sums so far, from `to_dict`.
    """

    def __init__(self, values: dict[str, int] | None = None) -> None:
        self.sums = {"frames": 0, "values": 0, "sum": 0, "squares": 0, "bytes": 0}
        self.low, self.high = 65535, 0
        if values is not None:
            self.sums = {name: values[name] for name in self.sums}
            self.low, self.high = values["min"], values["max"]

    def add(self, values: np.ndarray, encoded: pa.Array) -> None:
        """Add the frames of one batch, as stored values and as encoded."""
        self.sums["frames"] += len(values)
        self.sums["bytes"] += encoded.nbytes
        if np.issubdtype(values.dtype, np.floating):
            return  # logits and vectors have no statistics, so that nothing normalises them
        integers = values.astype(np.int64)
        self.sums["values"] += integers.size
        self.sums["sum"] += int(integers.sum())
        self.sums["squares"] += int(np.square(integers).sum())
        self.low, self.high = min(self.low, int(integers.min())), max(self.high, int(integers.max()))

    def merge(self, other: "Tally") -> None:
        """Add the sums of another tally."""
        self.sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def to_dict(self) -> dict[str, int]:
        """Return the sums as JSON types."""
        return {**self.sums, "min": self.low, "max": self.high}

    def stats(self) -> dict[str, Any]:
        """Return LeRobot's statistics of a one-channel image, (1, 1, 1) each."""
        count, total, squares = self.sums["values"], self.sums["sum"], self.sums["squares"]
        std = max(squares * count - total * total, 0) ** 0.5 / count
        values = {"min": self.low, "max": self.high, "mean": total / count, "std": std}
        stats: dict[str, Any] = {name: [[[float(value)]]] for name, value in values.items()}
        return {**stats, "count": [self.sums["frames"]]}
