# SPDX-License-Identifier: Apache-2.0
"""The source dataset of a job."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from lerobot.datasets import LeRobotDatasetMetadata

from ..perception.keys import image_key


@dataclass(frozen=True)
class Episode:
    """Location of one episode's frames.

    Attributes:
        start, end: its first frame in the dataset, and the first frame after it.
        data_file: Parquet file, relative to the dataset.
        videos: video file and time of the first frame [s], by feature key.
    """

    index: int
    start: int
    end: int
    data_file: Path
    videos: dict[str, tuple[Path, float]]

    @property
    def length(self) -> int:
        """Number of frames."""
        return self.end - self.start


def rgb_camera_names(meta: LeRobotDatasetMetadata) -> list[str]:
    """Return the names of the cameras with RGB images."""
    prefix = image_key("")
    keys = [key for key in meta.camera_keys if key.startswith(prefix) and key not in meta.depth_keys]
    return [key.removeprefix(prefix) for key in keys]


class Source:
    """A LeRobotDataset v3 in a local folder; `repo_id` is its name, for messages.

    Raises:
        FileNotFoundError: if there is no dataset, or one of its files is missing.
        ValueError: if its version is not 3, or its data files do not fit its episodes.
    """

    def __init__(self, root: Path, repo_id: str | None = None) -> None:
        self.root = root
        if not (root / "meta" / "info.json").is_file():
            raise FileNotFoundError(
                f"--root: found no dataset in {root} (no meta/info.json). Give the folder of a "
                "LeRobotDataset; one from the Hub is downloaded with `hf download --repo-type dataset`."
            )
        self.info: dict[str, Any] = json.loads((root / "meta" / "info.json").read_text())
        version = str(self.info.get("codebase_version"))
        if not version.startswith("v3"):
            raise ValueError(
                f"--root: {root} is a dataset of version {version}, expected v3.0. Convert it with LeRobot's "
                "convert_dataset_v21_to_v30 first."
            )
        self.meta = LeRobotDatasetMetadata(repo_id or f"local/{root.name}", root=root)
        self.features: dict[str, dict[str, Any]] = self.meta.features
        self._check_files()

    @cached_property
    def episodes(self) -> list[Episode]:
        """All episodes, in order."""
        keys = self.meta.video_keys
        rows: list[dict[str, Any]] = [] if self.meta.episodes is None else self.meta.episodes.to_list()
        return [
            Episode(
                row["episode_index"],
                row["dataset_from_index"],
                row["dataset_to_index"],
                self.meta.get_data_file_path(number),
                {
                    key: (self.meta.get_video_file_path(number, key), row[f"videos/{key}/from_timestamp"])
                    for key in keys
                },
            )
            for number, row in enumerate(rows)
        ]

    @property
    def rgb_keys(self) -> list[str]:
        """Keys of the RGB images."""
        return [key for key in self.meta.camera_keys if key not in self.meta.depth_keys]

    def image_sizes(self, cameras: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return the image sizes (h, w) of the cameras to process.

        Args:
            cameras: names from the command line; none selects all RGB cameras.

        Raises:
            ValueError: if a camera does not exist, or there is no RGB camera.
        """
        found = rgb_camera_names(self.meta)
        if not found:
            raise ValueError(
                f"--root: found no RGB camera in {self.root}, expected `{image_key('<camera>')}` with three "
                f"channels. It has {sorted(self.features)}."
            )
        unknown = [name for name in cameras if name not in found]
        if unknown or len(set(cameras)) < len(cameras):
            raise ValueError(f"--cameras: found {list(cameras)}, expected different ones of {found}.")
        shapes = {camera: self.features[image_key(camera)]["shape"] for camera in cameras or found}
        for camera, shape in shapes.items():
            if shape[-1] != 3:
                raise ValueError(
                    f"{image_key(camera)}: found shape {shape}, expected (height, width, 3). "
                    "Leave it out with --cameras."
                )
        return {camera: (shape[0], shape[1]) for camera, shape in shapes.items()}

    def data_files(self) -> dict[Path, list[Episode]]:
        """Return the episodes of each data file, in order."""
        files: dict[Path, list[Episode]] = {}
        for episode in self.episodes:
            files.setdefault(episode.data_file, []).append(episode)
        return files

    def video_files(self, keys: Sequence[str]) -> list[Path]:
        """Return the video files of some features, each once."""
        return sorted({episode.videos[key][0] for episode in self.episodes for key in keys})

    def fingerprint(self) -> str:
        """Return the SHA-256 of the metadata and statistics; repairing a video does not change it."""
        digest = hashlib.sha256((self.root / "meta" / "info.json").read_bytes())
        for path in sorted((self.root / "meta" / "episodes").rglob("*.parquet")):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _check_files(self) -> None:
        if not self.episodes:
            raise ValueError(f"--root: found no episodes in {self.root}, expected one or more.")
        for file in [*self.data_files(), *self.video_files(self.meta.video_keys)]:
            if not (self.root / file).is_file():
                raise FileNotFoundError(f"--root: {self.root / file} is missing; the dataset is incomplete.")
        for file, episodes in self.data_files().items():
            rows, expected = pq.read_metadata(self.root / file).num_rows, sum(e.length for e in episodes)
            if rows != expected:
                raise ValueError(
                    f"{self.root / file}: found {rows} frames, expected {expected} (episodes "
                    f"{episodes[0].index} to {episodes[-1].index}); the dataset is damaged."
                )
