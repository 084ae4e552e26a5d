# SPDX-License-Identifier: Apache-2.0
"""`so101-arrays`: copy a dataset without RGB images, with masks and depth as arrays that training reads fast.

    so101-arrays --root=outputs/demos --output=outputs/demos_arrays
    so101-arrays --root=outputs/demos --output=outputs/simulated --segmenter=sorting  # to act from RGB later

The source is not changed. The copy is for training only: see `policy/array_features.py` for its format. It
appears only when it is complete; after an interrupt, the same command starts again.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..atomic import atomic_path, sync
from ..cli import run_command
from ..lock import owning
from ..policy.array_features import array_feature, array_path
from .assemble import write_meta
from .columns import VECTOR
from .frames import read_values
from .simulated import ArrayColumn, simulated_columns
from .source import Source


@dataclass
class ArraysConfig:
    """Options of `so101-arrays`.

    Args:
        root: folder of the dataset, such as one of `so101-demos --seg --depth`, `so101-precompute` or
            `so101-cache-vision`.
        output: folder of the copy; it must not exist.
        segmenter: write a simulator's masks and depth as this segmenter would output them if it made no
            mistake. A policy that is trained on them runs the segmenter on RGB images afterwards. None keeps
            them as they are.
    """

    root: Path
    output: Path
    segmenter: str | None = None


def write_arrays(config: ArraysConfig) -> str:
    """Write the copy, and return a summary.

    Raises:
        ValueError: if the dataset has no masks, depth or cached features, or not those of a simulator for the
            segmenter.
        FileExistsError: if the output exists.
        FileNotFoundError: if there is no dataset.
    """
    source = Source(config.root)
    columns = simulated_columns(source, config.segmenter) if config.segmenter else _stored_columns(source)
    with owning(config.output):
        if config.output.exists():
            raise FileExistsError(
                f"--output: {config.output} exists already and was left as it is. Choose another folder."
            )
        for interrupted in config.output.parent.glob(f"{config.output.name}.*.tmp"):
            shutil.rmtree(interrupted)
        with atomic_path(config.output) as folder:
            shapes = {c.key: _write_array(source, c, array_path(folder, c.key)) for c in tqdm(columns)}
            dropped = list(dict.fromkeys((*source.meta.camera_keys, *(column.source for column in columns))))
            _write_data(source, list(shapes), dropped, folder)
            features = {key: feature for key, feature in source.features.items() if key not in dropped}
            features |= {c.key: array_feature(c.feature, shapes[c.key]) for c in columns}
            write_meta(source, folder, features, dropped)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    frames = source.meta.total_frames
    return f"{len(columns)} arrays of {frames} frames, {size / 1e6:,.0f} MB, in {config.output}"


def _stored_columns(source: Source) -> list[ArrayColumn]:
    """Return the masks, depth and cached features of a dataset, as they are."""
    vectors = [key for key, f in source.features.items() if (f.get("info") or {}).get("form") == VECTOR]
    keys = [*source.meta.depth_keys, *vectors]
    if not keys:
        raise ValueError(
            f"--root: found neither masks, depth nor cached features in {source.root}, expected some. Record "
            "them with `so101-demos --seg=true --depth=true`, or run `so101-precompute` or "
            "`so101-cache-vision` first."
        )
    return [ArrayColumn(key, key, source.features[key]) for key in keys]


def _write_array(source: Source, column: ArrayColumn, path: Path) -> tuple[int, ...]:
    """Write the values of a feature in the smallest type that holds them, and return the shape of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for dtype in (np.uint8, np.uint16, np.float32):
        array = None
        for episode in source.episodes:
            read = read_values(source, episode, column.source)
            values = (column.convert(read) if column.convert else read).numpy()
            stored = values.astype(dtype)
            if not np.array_equal(stored, values, equal_nan=True):
                break
            if array is None:
                shape = (source.meta.total_frames, *values.shape[1:])
                array = np.lib.format.open_memmap(path, "w+", dtype, shape)
            array[episode.start : episode.end] = stored
        else:
            assert array is not None
            array.flush()
            sync(path)
            return array.shape[1:]
    raise AssertionError("float32 holds every value")


def _write_data(source: Source, keys: list[str], dropped: list[str], folder: Path) -> None:
    """Write the data files without images, with row numbers for the arrays."""
    for file in source.data_files():
        table = pq.read_table(source.root / file)
        table = table.drop_columns([key for key in dropped if key in table.column_names])
        table = table.replace_schema_metadata(None)  # it names the types of the dropped columns
        for key in keys:
            table = table.append_column(key, table["index"].cast(pa.int64()))
        with atomic_path(folder / file) as temporary:
            pq.write_table(table, temporary, compression="snappy")


def main() -> None:
    """Run `so101-arrays`."""
    datasets.disable_progress_bars()
    stopped = "stopped; nothing was written."
    run_command("so101-arrays", ArraysConfig, write_arrays, stopped, log="lerobot_processor_so101")


if __name__ == "__main__":
    main()
