# SPDX-License-Identifier: Apache-2.0
"""Assemble the new dataset from the source and the new columns; it appears only when it is complete."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.feature_utils import get_hf_features_from_features

from ..atomic import atomic_path, link_or_copy, write_json
from ..recording import check_videos
from .columns import schema
from .job import Job, remove_partial, remove_temporaries
from .source import Episode, Source


def assemble(job: Job) -> str:
    """Create the dataset of a finished job, remove the job's folder, and return bytes per frame as a summary.

    Raises:
        RuntimeError: if an episode is not finished.
    """
    pending = job.pending()
    if pending:
        raise RuntimeError(
            f"{len(pending)} of {len(job.source.episodes)} episodes are not finished, the first is "
            f"{pending[0].index}. Give the same command again to resume."
        )
    remove_temporaries(job.folder)
    source, tallies = job.source, job.tallies()
    features = {key: value for key, value in source.features.items() if key not in job.dropped}
    features |= {column.key: column.feature() for column in job.columns}
    for file, episodes in source.data_files().items():
        _write_data_file(job, file, episodes, features)
    stats = {key: tally.stats() for key, tally in tallies.items() if tally.values}
    write_meta(source, job.dataset, features, job.dropped, stats)
    for file in source.video_files([key for key in source.meta.video_keys if key not in job.dropped]):
        link_or_copy(source.root / file, job.dataset / file)
    check_videos(job.dataset)
    os.replace(job.dataset, job.config.output)
    remove_partial(job.folder)
    sizes = (f"{key} {round(tally.bytes / tally.frames):,}" for key, tally in tallies.items())
    return f"bytes per frame: {', '.join(sizes)}"


def _write_data_file(job: Job, file: Path, episodes: list[Episode], features: dict[str, dict]) -> None:
    """Rewrite a data file with the new columns, in one row group per episode; then delete their parts."""
    target = job.dataset / file
    if not target.is_file():
        table = pq.read_table(job.source.root / file)
        table = table.drop_columns([key for key in job.dropped if key in table.column_names])
        # The metadata by which `datasets` and the Hub's viewer know that a column contains images.
        metadata = dict(get_hf_features_from_features(features).arrow_schema.metadata)
        fields = pa.schema([*table.schema, *schema(job.columns)]).with_metadata(metadata)
        with (
            atomic_path(target) as temporary,
            pq.ParquetWriter(temporary, fields, compression="snappy") as writer,
        ):
            for episode in episodes:
                with pa.memory_map(str(job.part(episode, "arrow"))) as part:
                    new = pa.ipc.open_file(part).read_all()
                    old = _rows(table, episode, job.source.root / file)
                    rows = pa.Table.from_arrays([*old.columns, *new.columns], schema=fields)
                    writer.write_table(rows, row_group_size=max(1, episode.length))
    for episode in episodes:
        job.part(episode, "arrow").unlink(missing_ok=True)


def _rows(table: pa.Table, episode: Episode, path: Path) -> pa.Table:
    rows = table.slice(episode.start - table["index"][0].as_py(), episode.length)
    if rows["episode_index"].unique().to_pylist() != [episode.index] or rows.num_rows != episode.length:
        raise ValueError(
            f"{path}: the rows of episode {episode.index} do not fit `meta/episodes`; the dataset is damaged."
        )
    return rows


def write_meta(
    source: Source,
    dataset: Path,
    features: dict[str, dict],
    dropped: Sequence[str],
    new_stats: dict[str, Any] | None = None,
) -> None:
    """Write the metadata of a dataset that is made from a source.

    Args:
        dataset: folder of the new one.
        features: of the new one.
        dropped: keys without videos and statistics in the new one.
        new_stats: statistics of new features.
    """
    root, target = source.root / "meta", dataset / "meta"
    prefixes = tuple(f"{kind}/{key}/" for key in dropped for kind in ("videos", "stats"))
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name not in ("info.json", "stats.json"):
            with atomic_path(target / path.relative_to(root)) as temporary:
                if path.suffix == ".parquet" and path.parent.parent.name == "episodes" and dropped:
                    table = pq.read_table(path)
                    names = [name for name in table.column_names if name.startswith(prefixes)]
                    pq.write_table(table.drop_columns(names), temporary)
                else:
                    shutil.copyfile(path, temporary)
    videos = any(feature["dtype"] == "video" for feature in features.values())
    video_path = source.info.get("video_path") if videos else None
    write_json(target / "info.json", {**source.info, "features": features, "video_path": video_path})
    stats = json.loads((root / "stats.json").read_text()) if (root / "stats.json").is_file() else {}
    stats = {key: value for key, value in stats.items() if key not in dropped}
    write_json(target / "stats.json", {**stats, **(new_stats or {})})
