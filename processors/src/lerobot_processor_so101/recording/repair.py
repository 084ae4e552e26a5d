# SPDX-License-Identifier: Apache-2.0
"""`so101-repair`: repair a LeRobotDataset whose recording was killed.

LeRobot's own commands keep the Parquet files of a recording open until it ends. After a kill, a power cut or
a full disk these files cannot be read, but the finished episodes are in them and in the videos.

    so101-repair --root=outputs/recording

The repaired dataset takes the place of the damaged one, which is kept as `outputs/recording.damaged`.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lerobot.datasets import LeRobotDataset
from lerobot.datasets.compute_stats import (
    aggregate_stats,
    auto_downsample_height_width,
    compute_episode_stats,
    get_feature_stats,
    sample_indices,
)
from lerobot.datasets.io_utils import load_info, load_tasks, write_info, write_stats
from lerobot.datasets.utils import (
    DATA_DIR,
    DEFAULT_EPISODES_PATH,
    DEFAULT_TASKS_PATH,
    EPISODES_DIR,
    INFO_PATH,
    STATS_PATH,
    VIDEO_DIR,
    DatasetInfo,
    serialize_dict,
)
from lerobot.utils.utils import flatten_dict
from tqdm import tqdm

from ..atomic import link_or_copy, sync
from ..cli import run_command
from ..lock import owning
from .footerless import recover
from .parquet import write_groups, write_template
from .unfinished import STAGING, find_finished, read_rows, read_stats
from .video_positions import VideoPositions
from .videos import check_videos

_IMAGES = ("image", "video")


@dataclass
class RepairConfig:
    """Options of `so101-repair`.

    Args:
        root: folder of the dataset.
        output: folder of the repaired dataset; it must not exist. By default `root`, and the damaged dataset
            is renamed to `<root>.damaged`.
    """

    root: Path
    output: Path | None = None


@dataclass
class Repair:
    """Numbers of episodes and frames in the repaired dataset, and a line per dropped episode."""

    episodes: int = 0
    frames: int = 0
    dropped: list[str] = field(default_factory=list)


def repair(config: RepairConfig) -> Repair | None:
    """Repair a dataset; the source is not changed before the repaired one is complete.

    Returns:
        What was recovered; None if the dataset is not damaged.

    Raises:
        FileNotFoundError: if there is no dataset.
        FileExistsError: if `output` exists.
        ValueError: if `meta/info.json` or `meta/tasks.parquet` cannot be read, or nothing can be recovered.
    """
    root = Path(os.path.normpath(config.root))
    output = root if config.output is None else Path(os.path.normpath(config.output))
    damaged, work = (output.with_name(f"{output.name}.{suffix}") for suffix in ("damaged", "repairing"))
    with owning(root):
        if not root.exists() and damaged.exists() and output == root:
            damaged.rename(root)  # a kill came between the last two lines of this function
        if not (root / INFO_PATH).is_file():
            raise FileNotFoundError(f"--root: found no dataset in {root}.")
        if output != root and output.exists():
            raise FileExistsError(f"--output: {output} exists already, expected a new folder.")
        with suppress(ValueError):  # a damaged JSON file raises it, too
            find_finished(root)
            check_videos(root)
            return None
        if output == root and damaged.exists():
            raise FileExistsError(f"{damaged} exists already, from an earlier repair. Move or delete it.")
        shutil.rmtree(work, ignore_errors=True)
        found = rebuild(root, work)
        if output == root:
            root.rename(damaged)
        work.rename(output)
        return found


def rebuild(root: Path, work: Path) -> Repair:
    """Write a dataset to the new folder `work`, with every complete episode of the damaged one in `root`."""
    # 1. read what is left of the metadata
    info, tasks = _read_info(root), _read_tasks(root)
    known = _known_rows(root)
    videos = VideoPositions(root, info, list(known.values()))
    # without what is written again, and what an unfinished episode left
    left_out = [DATA_DIR, VIDEO_DIR, EPISODES_DIR, INFO_PATH, STATS_PATH, "images", STAGING]
    paths = {*(root / name for name in left_out), *root.glob("tmp????????")}
    shutil.copytree(root, work, ignore=lambda folder, names: {n for n in names if Path(folder, n) in paths})
    # 2. copy the data of complete episodes
    found, rows, stats = Repair(), [], []
    for path, tables in _read_data(root, work, info, found):
        kept = []
        for table in tables:
            episode = table["episode_index"][0].as_py()
            position, missing = videos.find(episode, len(table))
            problem = missing or _problem(table, info, len(tasks))
            if problem:
                found.dropped.append(f"episode {episode}: {problem}")
                continue
            kept.append(_renumber(table, found))
            rows.append(_row(path.relative_to(root), kept[-1], tasks, position))
            old = read_stats(known[episode]) if episode in known else {}
            images = {key: value for key, value in old.items() if info.features[key]["dtype"] in _IMAGES}
            stats.append(compute_episode_stats(dict(_numbers(kept[-1], info)), info.features) | images)
            found.episodes, found.frames = found.episodes + 1, found.frames + len(table)
        if kept:
            (work / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            write_groups(work / path.relative_to(root), kept[0].schema, kept)
    if not rows:
        raise ValueError(f"{root}: found no complete episode. {'; '.join(found.dropped)}".strip())
    for path, source in videos.used.items():
        link_or_copy(source, work / path)
    # 3. write metadata without statistics, with which images can be read, and complete it
    info.total_episodes, info.total_frames, info.total_tasks = found.episodes, found.frames, len(tasks)
    info.splits = {"train": f"0:{found.episodes}"}
    write_info(info, work)
    _write_rows(work, rows)
    _add_image_stats(work, info, stats)
    flat = (flatten_dict({"stats": serialize_dict(each)}) for each in stats)
    _write_rows(work, [row | each for row, each in zip(rows, flat, strict=True)])
    write_stats(aggregate_stats(stats), work)
    # 4. check the result
    find_finished(work)
    check_videos(work)
    sync(*work.rglob("*"))
    return found


def _read_info(root: Path) -> DatasetInfo:
    try:
        return load_info(root)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{root / INFO_PATH}: this file cannot be read ({error}). Copy that of a dataset recorded with "
            "the same options to this path; its number of episodes does not matter."
        ) from None


def _read_tasks(root: Path) -> list[str]:
    try:
        return load_tasks(root).index.tolist()
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise ValueError(
            f"{root / DEFAULT_TASKS_PATH}: this file cannot be read ({error}). Copy that of a dataset "
            "recorded with the same task to this path."
        ) from None


def _known_rows(root: Path) -> dict[int, dict]:
    """Return the rows of meta/episodes that can be read."""
    known: dict[int, dict] = {}
    for path in sorted((root / EPISODES_DIR).rglob("*.parquet")):
        with suppress(ValueError):
            known |= {row["episode_index"]: row for row in read_rows(path, root)}
    return known


def _read_data(
    root: Path, work: Path, info: DatasetInfo, found: Repair
) -> Iterator[tuple[Path, list[pa.Table]]]:
    """Yield each data file and its episodes; files without footer are recovered."""
    model, recovered = work / "template.parquet", work / "recovered.parquet"
    write_template(info, model)
    for path in sorted((root / DATA_DIR).rglob("*.parquet")):
        readable = path
        try:
            pq.read_metadata(path)
        except pa.ArrowInvalid:
            if not recover(path, model, recovered):
                continue
            readable = recovered
        file, groups = pq.ParquetFile(readable), []
        for number in range(file.num_row_groups):
            try:
                groups.append(file.read_row_group(number))
            except (pa.ArrowInvalid, OSError) as error:
                found.dropped.append(f"row group {number} of {path.relative_to(root)}: {error}")
        if groups:
            yield path, _split(pa.concat_tables(groups))
    model.unlink()
    recovered.unlink(missing_ok=True)


def _split(table: pa.Table) -> list[pa.Table]:
    """Split a table by episodes."""
    episodes = table["episode_index"].to_numpy()
    cuts = [0, *(np.flatnonzero(np.diff(episodes)) + 1).tolist(), len(episodes)]
    return [table.slice(start, stop - start) for start, stop in pairwise(cuts)]


def _problem(table: pa.Table, info: DatasetInfo, tasks: int) -> str:
    """Return why the numbers of an episode are not valid; nothing if they are."""
    index, frame = (table[key].to_numpy() for key in ("index", "frame_index"))
    if not np.array_equal(frame, np.arange(len(table))):
        return f"frame_index: found {frame[0]} to {frame[-1]}, expected 0 to {len(table) - 1}"
    if not np.array_equal(index, index[0] + np.arange(len(table))):
        return f"index: found {index[0]} to {index[-1]} for {len(table)} frames"
    if not 0 <= table["task_index"].to_numpy().min() <= table["task_index"].to_numpy().max() < tasks:
        return f"task_index: found one that is not among {tasks} tasks"
    for key, values in _numbers(table, info):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return f"{key}: found NaN or infinity"
    return ""


def _numbers(table: pa.Table, info: DatasetInfo) -> Iterator[tuple[str, np.ndarray]]:
    """Yield features that are neither images nor text, as arrays with a row per frame."""
    for key in table.column_names:
        if info.features[key]["dtype"] not in ("image", "string", "language"):
            yield key, np.array(table[key].to_pylist(), dtype=info.features[key]["dtype"])


def _renumber(table: pa.Table, found: Repair) -> pa.Table:
    """Set the indices that follow from the number of episodes and frames before."""
    values = {
        "index": np.arange(found.frames, found.frames + len(table)),
        "episode_index": np.full(len(table), found.episodes),
    }
    for key, value in values.items():
        number = table.schema.get_field_index(key)
        table = table.set_column(number, table.schema.field(number), pa.array(value))
    return table


def _row(path: Path, table: pa.Table, tasks: list[str], position: dict) -> dict:
    """Return an episode's row of meta/episodes, without statistics."""
    chunk, file = (int(name.split("-")[-1]) for name in (path.parent.name, path.stem))
    first = table["index"][0].as_py()
    return {
        "episode_index": table["episode_index"][0].as_py(),
        "tasks": list(dict.fromkeys(tasks[number] for number in table["task_index"].to_pylist())),
        "length": len(table),
        "data/chunk_index": chunk,
        "data/file_index": file,
        "dataset_from_index": first,
        "dataset_to_index": first + len(table),
        **position,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }


def _add_image_stats(work: Path, info: DatasetInfo, stats: list[dict]) -> None:
    """Add statistics of images where there are none, from the frames that LeRobot takes when it records."""
    units = [(feature.get("info") or {}).get("depth_unit") for feature in info.features.values()]
    unit = next(filter(None, units), "mm")
    dataset = LeRobotDataset("local/repair", root=work, return_uint8=True, depth_output_unit=unit)
    keys = [key for key, feature in info.features.items() if feature["dtype"] in _IMAGES]
    for episode, known in enumerate(tqdm(stats, desc="statistics", unit="episode")):
        row = dataset.meta.episodes[episode]
        for key in (key for key in keys if key not in known):
            frames = sample_indices(row["length"])
            if key in dataset.meta.video_keys:
                times = {key: [frame / info.fps for frame in frames]}
                images = dataset._ensure_reader()._query_videos(times, episode)[key]
            else:
                first = row["dataset_from_index"]
                images = torch.stack([dataset.hf_dataset[first + frame][key] for frame in frames])
            depth = key in dataset.meta.depth_keys
            images = images.reshape(len(frames), *images.shape[-3:]).numpy()
            if not depth and images.dtype != np.uint8:
                images = np.round(images * 255).astype(np.uint8)
            small = np.stack([auto_downsample_height_width(image) for image in images])
            found = get_feature_stats(small, axis=(0, 2, 3), keepdims=True)
            scale = 1.0 if depth else 255.0
            known[key] = {
                name: value if name == "count" else np.squeeze(value / scale, axis=0)
                for name, value in found.items()
            }


def _write_rows(work: Path, rows: list[dict]) -> None:
    path = work / DEFAULT_EPISODES_PATH.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def main() -> None:
    """Run `so101-repair`."""
    datasets.disable_progress_bars()

    def command(config: RepairConfig) -> str:
        found, output = repair(config), config.output or config.root
        if found is None:
            return f"{config.root} is complete; nothing to repair."
        lines = [f"{found.episodes} episodes, {found.frames} frames in {output}"]
        lines += [f"dropped {line}" for line in found.dropped]
        if config.output is None:
            lines.append(f"the damaged dataset is in {config.root}.damaged")
        return "\n".join(lines)

    run_command("so101-repair", RepairConfig, command, log="lerobot_processor_so101")


if __name__ == "__main__":
    main()
