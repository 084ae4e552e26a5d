# SPDX-License-Identifier: Apache-2.0
"""Parquet files of a LeRobotDataset: those of the data have one row group per episode."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.io_utils import embed_images
from lerobot.datasets.utils import DatasetInfo

from ..atomic import replace_synced

_FULL = 8, 16 * 2**20  # episodes, bytes


def parquet_path(row: dict, kind: str, pattern: str) -> Path:
    """Return a file's path relative to the dataset, from the columns of a `kind` in meta/episodes."""
    return Path(pattern.format(**{name: row[f"{kind}/{name}"] for name in ("chunk_index", "file_index")}))


def is_full(path: Path) -> bool:
    """Tell whether a file should get no further episode."""
    episodes = len(pc.unique(pq.read_table(path, columns=["episode_index"])["episode_index"]))
    return episodes >= _FULL[0] or path.stat().st_size >= _FULL[1]


def append(first: Path, second: Path, target: Path, one_group: bool) -> None:
    """Write the rows of two files to `target`, delete the second file, and join row groups if `one_group`."""
    files = pq.ParquetFile(first), pq.ParquetFile(second)
    schema = files[0].schema_arrow
    groups: Iterable[pa.Table] = (
        # LeRobot's statistics of integers are fractions for an episode of one frame
        file.read_row_group(number).cast(schema)
        for file in files
        for number in range(file.num_row_groups)
    )
    if one_group:
        groups = [pa.concat_tables(groups)]
    temporary = target.with_suffix(".joined")
    write_groups(temporary, schema, groups)
    second.unlink()
    temporary.rename(target)


def set_values(path: Path, values: dict) -> None:
    """Replace columns of a file with one row."""
    table = pq.read_table(path)
    for number, field in enumerate(table.schema):
        if field.name.endswith(("/chunk_index", "/file_index")):
            table = table.set_column(number, field, pa.array([values[field.name]], field.type))
    write_groups(path, table.schema, [table])


def keep_rows(path: Path, condition: pc.Expression) -> None:
    """Remove rows that do not meet a condition, and replace the file atomically."""
    file = pq.ParquetFile(path)
    kept = [file.read_row_group(number).filter(condition) for number in range(file.num_row_groups)]
    temporary = path.with_suffix(".kept")
    write_groups(temporary, file.schema_arrow, filter(len, kept))
    replace_synced(temporary, path)


def write_template(info: DatasetInfo, path: Path) -> None:
    """Write a data file with one row, as LeRobot writes it for these features."""
    features = get_hf_features_from_features(info.features)
    values = {key: [_dummy(feature)] for key, feature in features.items()}
    rows = embed_images(datasets.Dataset.from_dict(values, features=features)).with_format("arrow")[:]
    write_groups(path, rows.schema, [rows])


def _dummy(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return PIL.Image.new("RGB", (1, 1))
    if isinstance(feature, datasets.Value):
        return "" if feature.dtype == "string" else 0
    if isinstance(feature, datasets.Sequence):
        return [_dummy(feature.feature)] * feature.length
    return np.zeros(feature.shape, feature.dtype)


def write_groups(path: Path, schema: pa.Schema, groups: Iterable[pa.Table]) -> None:
    """Write a file with a row group per table, as LeRobot does."""
    with pq.ParquetWriter(path, schema, compression="snappy", use_dictionary=True) as writer:
        for table in groups:
            writer.write_table(table)
