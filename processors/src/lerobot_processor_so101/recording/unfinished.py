# SPDX-License-Identifier: Apache-2.0
"""Remove what a killed recording left behind."""

import logging
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lerobot.datasets.compute_stats import aggregate_stats
from lerobot.datasets.io_utils import load_info, load_stats
from lerobot.datasets.utils import DATA_DIR, EPISODES_DIR, STATS_PATH, VIDEO_DIR, DatasetInfo, serialize_dict
from lerobot.utils.utils import unflatten_dict

from ..atomic import write_json
from .parquet import keep_rows, parquet_path

STAGING = ".recording"  # folder in a dataset that is being recorded, with files of the unfinished episode

logger = logging.getLogger(__name__)


@dataclass
class Finished:
    """What belongs to the episodes that `meta/info.json` counts.

    Attributes:
        rows: of meta/episodes.
        files: data files and videos of these episodes.
        longer: data files and files of meta/episodes that have rows of further episodes, too.
        superfluous: files of meta/episodes without any row of these episodes.
    """

    info: DatasetInfo
    rows: list[dict]
    files: set[Path]
    longer: list[Path]
    superfluous: list[Path]


def find_finished(root: Path) -> Finished:
    """Find what belongs to the episodes that `meta/info.json` counts.

    Raises:
        ValueError: if a file of these episodes is damaged or missing.
    """
    info = load_info(root)
    found = {path: read_rows(path, root) for path in sorted((root / EPISODES_DIR).rglob("*.parquet"))}
    finished = {
        path: [row for row in rows if row["episode_index"] < info.total_episodes]
        for path, rows in found.items()
    }
    rows = sorted((row for rows in finished.values() for row in rows), key=lambda row: row["episode_index"])
    if [row["episode_index"] for row in rows] != list(range(info.total_episodes)):
        raise ValueError(f"{root}: found {len(rows)} episodes, expected {info.total_episodes}. {_how(root)}")
    expected: Counter[Path] = Counter()
    for row in rows:
        expected[root / parquet_path(row, "data", info.data_path)] += row["length"]
    files = set(expected)
    for key in (key for key, feature in info.features.items() if feature["dtype"] == "video"):
        pattern = str(info.video_path).replace("{video_key}", key)
        files |= {root / parquet_path(row, f"videos/{key}", pattern) for row in rows}
    lengths = {path: _count_rows(path, root) for path in expected}
    for path in sorted(files):
        if not path.is_file() or lengths.get(path, 0) < expected[path]:
            raise ValueError(f"{path}: this file is missing or incomplete. {_how(root)}")
    longer = [path for path, length in lengths.items() if length > expected[path]]
    longer += [path for path in found if 0 < len(finished[path]) < len(found[path])]
    return Finished(info, rows, files, longer, [path for path in found if not finished[path]])


def remove_unfinished(root: Path) -> None:
    """Remove files and rows that belong to no finished episode, and report them in one line.

    Raises:
        ValueError: if a file with finished episodes is damaged or missing; nothing is removed then.
    """
    finished = find_finished(root)
    # 1. remove files and rows
    folders = [root / DATA_DIR, root / VIDEO_DIR, root / STAGING, root / "images", *root.glob("tmp????????")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += finished.superfluous + list((root / "meta").glob("*.tmp"))
    unfinished = sorted(path for path in files if path not in finished.files)
    for path in unfinished:
        path.unlink()
    for folder in filter(Path.is_dir, folders[2:]):
        shutil.rmtree(folder)
    for path in finished.longer:
        keep_rows(path, pc.field("episode_index") < finished.info.total_episodes)
    # 2. compute the statistics again if they are not those of the finished frames
    stats = load_stats(root)
    if finished.rows and (stats is None or stats["index"]["count"][0] != finished.info.total_frames):
        values = aggregate_stats([read_stats(row) for row in finished.rows])
        write_json(root / STATS_PATH, serialize_dict(values))
    if changed := unfinished + finished.longer:
        first = changed[0].relative_to(root)
        logger.warning("%s: removed what was left of an unfinished episode, such as %s.", root, first)


def read_stats(row: dict) -> dict[str, dict[str, np.ndarray]]:
    """Return the statistics in a row of meta/episodes, as `compute_episode_stats` does."""
    stats = {key: np.array(value) for key, value in row.items() if key.startswith("stats/")}
    return unflatten_dict(stats)["stats"]


def read_rows(path: Path, root: Path) -> list[dict]:
    """Return the rows of a file of meta/episodes; raises ValueError if it was not written to its end."""
    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: this file was not written to its end ({error}). {_how(root)}") from None


def _count_rows(path: Path, root: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows if path.is_file() else 0
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: this file was not written to its end ({error}). {_how(root)}") from None


def _how(root: Path) -> str:
    return f"Repair the dataset: so101-repair --root={root}"
