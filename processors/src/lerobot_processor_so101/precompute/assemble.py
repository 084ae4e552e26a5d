# SPDX-License-Identifier: Apache-2.0
"""Put the source and the new columns together: a dataset that appears only when it is complete."""

import errno
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.feature_utils import get_hf_features_from_features

from .columns import schema
from .job import Job, remove_leftovers, remove_temporaries, write_json, written_whole
from .source import Episode


def assemble(job: Job) -> str:
    """Make the dataset of a job whose episodes are all done, and remove the job's folder.

    Returns:
        Bytes per frame of each new column, for people.

    Raises:
        RuntimeError: an episode is not done.
    """
    pending = job.pending()
    if pending:
        raise RuntimeError(
            f"{len(pending)} of {len(job.source.episodes)} episodes are not done, the first is {pending[0].index}. "
            "Give the same command again to go on."
        )
    remove_temporaries(job.folder)
    for file, episodes in job.source.data_files().items():
        _data_file(job, file, episodes)
    _meta(job)
    for file in job.source.video_files(
        [key for key in job.source.meta.video_keys if key not in _dropped(job)]
    ):
        link(job.source.root / file, job.dataset / file)
    tallies = job.tallies()
    os.replace(job.dataset, job.config.output)
    remove_leftovers(job.folder)
    sizes = (f"{key} {round(t.sums['bytes'] / t.sums['frames']):,}" for key, t in tallies.items())
    return f"bytes per frame: {', '.join(sizes)}"


def link(source: Path, target: Path) -> None:
    """Make a file appear at another place without copying it; copy it where that cannot be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source.resolve(), target)  # of a symbolic link, as in the Hub's cache, what it points to
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        with written_whole(target) as temporary:
            shutil.copyfile(source, temporary)


def _data_file(job: Job, file: Path, episodes: list[Episode]) -> None:
    """Rewrite a data file with the new columns, one row group per episode as LeRobot does; then free their parts."""
    target = job.dataset / file
    if not target.is_file():
        table = pq.read_table(job.source.root / file)
        table = table.drop_columns([key for key in _dropped(job) if key in table.column_names])
        added = schema(job.columns)
        fields = pa.schema([*table.schema, *added]).with_metadata(_hf_metadata(job))
        with (
            written_whole(target) as temporary,
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
    first = table["index"][0].as_py()
    rows = table.slice(episode.start - first, episode.length)
    if rows["episode_index"].unique().to_pylist() != [episode.index] or rows.num_rows != episode.length:
        raise ValueError(
            f"{path}: the rows of episode {episode.index} are not where `meta/episodes` says; the dataset is damaged."
        )
    return rows


def _features(job: Job) -> dict[str, dict]:
    kept = {key: value for key, value in job.source.features.items() if key not in _dropped(job)}
    return {**kept, **{column.key: column.feature() for column in job.columns}}


def _hf_metadata(job: Job) -> dict[bytes, bytes]:
    """What tells `datasets` and the Hub's viewer that a column holds pictures."""
    features = {key: {**value, "shape": tuple(value["shape"])} for key, value in _features(job).items()}
    return dict(get_hf_features_from_features(features).arrow_schema.metadata)


def _meta(job: Job) -> None:
    source, target = job.source.root / "meta", job.dataset / "meta"
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name not in ("info.json", "stats.json"):
            _meta_file(path, target / path.relative_to(source), _dropped(job))
    features = _features(job)
    videos = any(feature["dtype"] == "video" for feature in features.values())
    video_path = job.source.info.get("video_path") if videos else None
    write_json(target / "info.json", {**job.source.info, "features": features, "video_path": video_path})
    stats = source / "stats.json"
    known = json.loads(stats.read_text()) if stats.is_file() else {}
    known = {key: value for key, value in known.items() if key not in _dropped(job)}
    new = {key: tally.stats() for key, tally in job.tallies().items() if tally.sums["values"]}
    write_json(target / "stats.json", {**known, **new})


def _meta_file(source: Path, target: Path, dropped: Iterable[str]) -> None:
    with written_whole(target) as temporary:
        if source.suffix != ".parquet" or source.parent.parent.name != "episodes" or not dropped:
            shutil.copyfile(source, temporary)
            return
        table = pq.read_table(source)
        gone = tuple(f"{kind}/{key}/" for key in dropped for kind in ("videos", "stats"))
        table = table.drop_columns([name for name in table.column_names if name.startswith(gone)])
        pq.write_table(table, temporary)


def _dropped(job: Job) -> list[str]:
    return job.source.rgb_keys if job.config.drop_rgb else []
