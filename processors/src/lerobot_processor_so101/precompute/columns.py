# SPDX-License-Identifier: Apache-2.0
"""What is added to a dataset: one column per camera and stored form."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
from datasets.features.features import numpy_to_pyarrow_listarray
from lerobot.datasets.feature_utils import get_hf_features_from_features

from ..identity import ModelIdentity

LOGITS = "logits"
VECTOR = "vector"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: name of the feature.
        camera: whose pictures it is made from.
        form: ids, top_k, logits, disparity or vector.
        size: (h, w) of the map.
        shape: of one stored value: (height, width, 1) of a picture, (C, h, w) of logits, or (D,) of a vector.
        identity: the model that makes it.
        pictures: (h, w) of the pictures it is made from.
        whole: fractions of disparity are cut off.
    """

    key: str
    camera: str
    form: str
    size: tuple[int, int]
    shape: tuple[int, ...]
    identity: ModelIdentity
    pictures: tuple[int, int]
    whole: bool = False

    def feature(self) -> dict[str, Any]:
        """The feature as LeRobot's `info.json` describes it."""
        made: dict[str, Any] = {
            "perception": self.identity.to_dict(),
            "form": self.form,
            "size": list(self.size),
            "pictures": list(self.pictures),
        }
        if self.whole:
            made["whole"] = True
        if self.form == LOGITS:
            return {
                "dtype": "float16",
                "shape": list(self.shape),
                "names": ["channels", "height", "width"],
                "info": made,
            }
        if self.form == VECTOR:
            return {"dtype": "float32", "shape": list(self.shape), "names": None, "info": made}
        return {
            "dtype": "image",
            "shape": list(self.shape),
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": True, "depth_unit": "mm", **made},
        }

    @property
    def logits_bytes(self) -> int:
        """Bytes per frame of dense logits; 0 for the other forms, which are small."""
        return 2 * int(np.prod(self.shape)) if self.form == LOGITS else 0

    def encode(self, values: np.ndarray) -> pa.Array:
        """Turn stored values into what stands in a Parquet file.

        Args:
            values: (B, 1, h, w) whole numbers below 65536, (B, C, h, w) float16 for logits, or (B, D) float32.
        """
        if self.form == VECTOR:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        if self.form == LOGITS:
            storage = numpy_to_pyarrow_listarray(values)
            return pa.ExtensionArray.from_storage(schema([self]).field(self.key).type, storage)
        pictures = pa.array([_png(plane) for plane in values[:, 0].astype(np.uint16)], pa.binary())
        return pa.StructArray.from_arrays([pictures, pa.nulls(len(values), pa.string())], ["bytes", "path"])


def schema(columns: Sequence[Column]) -> pa.Schema:
    """Arrow schema of the columns."""
    features = {column.key: {**column.feature(), "shape": column.shape} for column in columns}
    return get_hf_features_from_features(features).arrow_schema


def _png(plane: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(plane).save(buffer, "PNG")
    return buffer.getvalue()


class Tally:
    """Whole-number sums of a column, from which statistics follow exactly, whatever the order of adding.

    Args:
        values: the sums so far, as `to_dict` gives them.
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
        whole = values.astype(np.int64)
        self.sums["values"] += whole.size
        self.sums["sum"] += int(whole.sum())
        self.sums["squares"] += int(np.square(whole).sum())
        self.low, self.high = min(self.low, int(whole.min())), max(self.high, int(whole.max()))

    def merge(self, other: "Tally") -> None:
        """Add what another has counted."""
        self.sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def to_dict(self) -> dict[str, int]:
        """As JSON types."""
        return {**self.sums, "min": self.low, "max": self.high}

    def stats(self) -> dict[str, Any]:
        """LeRobot's statistics of a one-channel picture, (1, 1, 1) each."""
        count, total, squares = self.sums["values"], self.sums["sum"], self.sums["squares"]
        mean = total / count
        std = max(squares * count - total * total, 0) ** 0.5 / count
        of_picture = {"min": self.low, "max": self.high, "mean": mean, "std": std}
        return {
            **{name: [[[float(value)]]] for name, value in of_picture.items()},
            "count": [self.sums["frames"]],
        }
