# SPDX-License-Identifier: Apache-2.0
"""Find the episodes of a killed recording in its videos."""

import logging
import tempfile
from contextlib import suppress
from pathlib import Path

from lerobot.datasets.utils import VIDEO_DIR, DatasetInfo

from .parquet import parquet_path
from .videos import count_frames

logger = logging.getLogger(__name__)


class VideoPositions:
    """Positions of episodes in the videos of a dataset.

    The rows of meta/episodes contain them. Where the rows are lost, episodes follow one another in the files
    that no row names, and a file ends where an episode ends.
    """

    def __init__(self, root: Path, info: DatasetInfo, rows: list[dict]) -> None:
        self.used: dict[Path, Path] = {}  # videos of found episodes: relative path, and the complete file
        self._root, self._info = root, info
        self._rows = {row["episode_index"]: row for row in rows}
        self._keys = [key for key, feature in info.features.items() if feature["dtype"] == "video"]
        self._found: dict[Path, tuple[Path, int]] = {}  # complete file and its number of frames
        self._files: dict[str, list[Path]] = {}  # without the files of known rows
        self._next = dict.fromkeys(self._keys, 0)  # frame in the first of these
        for key in self._keys:
            named = {self._path(row, key) for row in rows}
            files = (path.relative_to(root) for path in sorted((root / VIDEO_DIR / key).rglob("*.mp4")))
            self._files[key] = [path for path in files if path not in named]

    def find(self, episode: int, length: int) -> tuple[dict, str]:
        """Return the position columns of an episode, and what is missing in the videos.

        Call it with the indices of the damaged dataset, those without a row in order.
        """
        position: dict = {}
        problems = []
        for key in self._keys:
            row = self._rows.get(episode) or self._follow(key, length)
            path, fps = self._path(row, key), self._info.fps
            last = round(row[f"videos/{key}/from_timestamp"] * fps) + length
            if (found := self._count(path)) < last:
                problems.append(f"{path}: found {found} frames, expected {last}")
            position |= {name: value for name, value in row.items() if name.startswith(f"videos/{key}/")}
        if not problems:
            paths = [self._path(position, key) for key in self._keys]
            self.used |= {path: self._found[path][0] for path in paths}
        return position, "; ".join(problems)

    def _follow(self, key: str, length: int) -> dict:
        """Return the position after that of the episode before, whose row is lost, too."""
        files, first = self._files[key], self._next[key]
        if len(files) > 1 and first and first == self._count(files[0]):
            self._files[key], first = files[1:], 0
        self._next[key] = first + length
        path = self._files[key][0] if files else Path(self._pattern(key).format(chunk_index=0, file_index=0))
        chunk, file = (int(name.split("-")[-1]) for name in (path.parent.name, path.stem))
        return {
            f"videos/{key}/chunk_index": chunk,
            f"videos/{key}/file_index": file,
            f"videos/{key}/from_timestamp": first / self._info.fps,
            f"videos/{key}/to_timestamp": (first + length) / self._info.fps,
        }

    def _pattern(self, key: str) -> str:
        return str(self._info.video_path).replace("{video_key}", key)

    def _path(self, row: dict, key: str) -> Path:
        return parquet_path(row, f"videos/{key}", self._pattern(key))

    def _count(self, path: Path) -> int:
        """Count the frames of a video, or of a complete copy."""
        if path not in self._found:
            complete, frames = [self._root / path, *_complete_copies(self._root / path)][-1], 0
            with suppress(ValueError, OSError):
                frames = count_frames(complete)
            self._found[path] = complete, frames
            if complete != self._root / path:
                logger.warning("%s is incomplete; taken from %s.", path, complete)
        return self._found[path][1]


def _complete_copies(path: Path) -> list[Path]:
    """Return files in the temporary folder that begin with a video.

    LeRobot adds an episode to a video in the temporary folder, and moves it over the video. On another file
    system that is a copy, and a kill leaves its beginning.
    """
    size = path.stat().st_size if path.is_file() else 0
    if not size:
        return []
    others = sorted(Path(tempfile.gettempdir()).glob("tmp*.mp4"))
    return [other for other in others if other.stat().st_size > size and _same_beginning(path, other)]


def _same_beginning(path: Path, other: Path) -> bool:
    with path.open("rb") as first, other.open("rb") as second:
        while part := first.read(2**20):
            if second.read(len(part)) != part:
                return False
    return True
