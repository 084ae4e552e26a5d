# SPDX-License-Identifier: Apache-2.0
"""A LeRobotDataset that loses neither frames nor finished episodes."""

import errno
import io
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
from datasets.table import embed_table_storage
from lerobot.datasets import LeRobotDataset
from lerobot.datasets.dataset_writer import DatasetWriter
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.image_writer import image_array_to_pil_image, save_kwargs_for_path
from lerobot.datasets.io_utils import load_info
from lerobot.datasets.utils import DEFAULT_EPISODES_PATH, INFO_PATH, STATS_PATH, update_chunk_file_indices
from lerobot.datasets.video_utils import StreamingVideoEncoder
from lerobot.utils.constants import HF_LEROBOT_HOME

from ..atomic import sync
from .parquet import append, is_full, parquet_path, set_values
from .unfinished import STAGING, remove_unfinished
from .videos import count_frames

_PNG_END = b"IEND\xaeB`\x82"


class WaitingVideoEncoder(StreamingVideoEncoder):
    """LeRobot's streaming encoder, but it blocks where LeRobot's drops a frame: its queue full for 0.1 s.

    Right for frames from a simulator or a file, which can wait. Frames of a camera cannot.
    """

    def start_episode(self, *args: Any, **kwargs: Any) -> None:
        """Start the encoder threads of a new episode."""
        super().start_episode(*args, **kwargs)
        self._fed: Counter[str] = Counter()
        self._finished: dict[str, tuple[Path, dict | None]] = {}

    def feed_frame(self, video_key: str, image: np.ndarray) -> None:
        """Pass a frame on, as soon as the queue has room for it."""
        while self._frame_queues[video_key].full() and self._threads[video_key].is_alive():
            time.sleep(0.001)
        super().feed_frame(video_key, image)
        self._fed[video_key] += 1

    def complete_episode(self) -> None:
        """Encode what is queued, however long it takes, and compare the videos with what was fed.

        Call it before `save_episode` writes anything: if it raises, the episode can still be cleared.

        Raises:
            RuntimeError: if an encoder failed or a video lacks frames.
        """
        for key, frames in self._frame_queues.items():
            while not frames.empty() and self._threads[key].is_alive():
                time.sleep(0.005)
            while not frames.empty():  # the encoder died: make room, or LeRobot's end mark would wait forever
                frames.get_nowait()
        self._finished = super().finish_episode()
        found = {key: count_frames(path) for key, (path, _) in self._finished.items()}
        short = [
            f"{key}: found {found[key]} frames, expected {fed}"
            for key, fed in self._fed.items()
            if found[key] != fed
        ]
        if short:
            raise RuntimeError(f"The video encoder lost frames. {'; '.join(short)}.")

    def finish_episode(self) -> dict[str, tuple[Path, dict | None]]:
        """Return the path and statistics of every video of the completed episode."""
        return self._finished


class EncodedImage(io.BytesIO):
    """An encoded image in place of the path of its file, in LeRobot's episode buffer."""

    def __init__(self, image: np.ndarray, path: Path) -> None:
        super().__init__()
        self.name = path.name
        image_array_to_pil_image(image).save(self, format="TIFF", **save_kwargs_for_path(path, 0))

    def endswith(self, suffix: str) -> bool:
        """Tell whether the path would end with a suffix, as LeRobot's statistics ask."""
        return self.name.endswith(suffix)


class EpisodeWriter(DatasetWriter):
    """LeRobot's writer, but masks and depth have no files, and images are embedded all at once.

    LeRobot writes every image to a file, reads some of them again for statistics, and embeds them row by row.
    Masks and depth that are not encoded as video stay in memory here until their episode is saved.
    """

    @classmethod
    def replacing(cls, writer: DatasetWriter) -> "EpisodeWriter":
        """Return a writer with the state of a new one of LeRobot, which creates its writer itself."""
        encoders = writer._rgb_encoder, writer._depth_encoder, writer._encoder_threads
        streaming = writer._batch_encoding_size, writer._streaming_encoder
        new = cls(writer._meta, writer._root, *encoders, *streaming, writer._recorded_frames)
        new.image_writer = writer.image_writer
        writer._finalized = True  # or it would stop the image writer when it is deleted
        return new

    @cached_property
    def images(self) -> dict[str, EncodedImage]:
        """Masks and depth of the episode in the buffer, by the paths that LeRobot would give them."""
        return {}

    def _save_image(self, image: Any, fpath: Path, compress_level: int = 1) -> None:
        if fpath.suffix == ".tiff" and not self._meta.video_keys:  # those of a video are encoded from files
            self.images[str(fpath)] = EncodedImage(image, fpath)
        else:
            super()._save_image(image, fpath, compress_level)

    def _create_episode_buffer(self, episode_index: int | None = None) -> dict:
        self.images.clear()
        return super()._create_episode_buffer(episode_index)

    def save_episode(self, *args: Any, **kwargs: Any) -> None:
        """Save the episode in the buffer."""
        for key in self._meta.depth_keys:
            self.episode_buffer[key] = [self.images.get(path, path) for path in self.episode_buffer[key]]
        super().save_episode(*args, **kwargs)

    def _save_episode_data(self, episode_buffer: dict) -> dict:
        features = get_hf_features_from_features(self._meta.features)
        rows = {key: episode_buffer[key] for key in features}
        rows |= {key: list(map(_embedded, rows[key])) for key in self._meta.depth_keys if key in rows}
        table = datasets.Dataset.from_dict(rows, features=features).data.table
        position, first = {"chunk_index": 0, "file_index": 0}, 0
        if self._meta.episodes:
            last = self._meta.episodes[-1]
            numbers = last["data/chunk_index"], last["data/file_index"], self._meta.chunks_size
            position = dict(zip(position, update_chunk_file_indices(*numbers), strict=True))
            first = last["dataset_to_index"]
        path = self._root / self._meta.data_path.format(**position)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(embed_table_storage(table), path, compression="snappy")
        self._recorded_frames += len(table)
        data = {f"data/{key}": value for key, value in position.items()}
        return {**data, "dataset_from_index": first, "dataset_to_index": first + len(table)}


class RecordingDataset(LeRobotDataset):
    """A LeRobotDataset that writes every frame, and whose finished episodes survive a kill or a full disk.

    LeRobot appends episodes to open Parquet files, which cannot be read until they are closed, and to
    videos. Here the files of an episode are written to a staging folder, closed, flushed to the disk and
    moved into the dataset, `meta/info.json` after those that it counts. The dataset can be loaded at any
    moment. Each episode has videos of its own; a Parquet file is replaced by one with an episode more, until
    it has 8 or 16 MB: thousands of files would load slowly.
    """

    _last_row: dict | None = None  # in meta/episodes of the last episode that this object saved

    @classmethod
    def create(
        cls, repo_id: str, fps: int, features: dict, root: Path | str | None = None, **options: Any
    ) -> "RecordingDataset":
        """Create a dataset; `options` are those of `LeRobotDataset.create`.

        Raises:
            FileExistsError: if `root` exists and contains more than a recording that was killed at once.
        """
        _check_options(options)
        folder = HF_LEROBOT_HOME / repo_id if root is None else Path(root)
        if folder.exists():
            if any(path.name != STAGING for path in folder.iterdir()):
                raise FileExistsError(f"{folder} exists already, expected a new folder.")
            shutil.rmtree(folder)
        dataset = super().create(repo_id, fps, features, root=folder / STAGING, **options)
        dataset.writer = EpisodeWriter.replacing(dataset.writer)
        dataset.root = dataset._requested_root = folder
        dataset._publish()
        return dataset

    @classmethod
    def resume(cls, repo_id: str, root: Path | str, **options: Any) -> "RecordingDataset":
        """Open a dataset to add episodes; `options` are those of `LeRobotDataset.resume`.

        Files of an unfinished episode are removed.

        Raises:
            ValueError: if the dataset is damaged; the message names the command that repairs it.
        """
        _check_options(options)
        remove_unfinished(Path(root))
        dataset = super().resume(repo_id, root=root, **options)
        dataset.writer = EpisodeWriter.replacing(dataset.writer)
        dataset._set_folder(dataset.root / STAGING)
        return dataset

    @staticmethod
    def _build_streaming_encoder(*args: Any, **kwargs: Any) -> WaitingVideoEncoder:
        return WaitingVideoEncoder(*args, **kwargs)

    def add_frame(self, frame: dict) -> None:
        """Add a frame to the episode in the buffer."""
        with _naming_a_full_disk(self.root):
            super().add_frame(frame)

    def save_episode(self, *args: Any, **kwargs: Any) -> None:
        """Save the episode in the buffer. When this returns, it is on the disk.

        Raises:
            RuntimeError: if a video would lack frames or an image was not written.
            OSError: if the disk is full. In both cases nothing of the episode is saved, its buffer is
                cleared and finished episodes stay.
        """
        meta, writer = self.meta, self.writer
        before = deepcopy(meta.info), deepcopy(meta.tasks), meta.stats
        try:
            with _naming_a_full_disk(self.root):
                self._complete_images()
                super().save_episode(*args, **kwargs)
                writer.close_writer()
                meta._close_writer()
                row = {key: value[0] for key, value in meta.latest_episode.items()}
                self._join_files(row)
                self._publish()
        except BaseException:
            self._discard()
            meta.info, meta.tasks, meta.stats = before
            raise
        # LeRobot begins new files for the next episode, as it does in a recording that was just resumed.
        meta.episodes, self._last_row = [row], row
        meta.latest_episode = writer._latest_episode = None

    def finalize(self) -> None:
        """End the recording and remove what belongs to no finished episode."""
        if self._is_finalized or self.writer is None:
            return
        super().finalize()
        self._set_folder(self.root)
        remove_unfinished(self.root)
        self.meta.info, self.meta.episodes = load_info(self.root), None

    def _set_folder(self, folder: Path) -> None:
        """Set the folder that LeRobot writes to."""
        folder.mkdir(exist_ok=True)
        self.meta.root = self.writer._root = folder

    def _complete_images(self) -> None:
        """Check that every image of the episode in the buffer is encoded."""
        encoder = self.writer._streaming_encoder
        self.writer._wait_image_writer()
        if isinstance(encoder, WaitingVideoEncoder):
            encoder.complete_episode()
        for key in self.meta.camera_keys:
            # LeRobot's image writer logs errors and goes on.
            paths = (path for path in self.writer.episode_buffer[key] if path not in self.writer.images)
            missing = [path for path in paths if path and not _is_complete(path)]
            if missing:
                raise RuntimeError(f"{key}: {len(missing)} images were not written, such as {missing[0]}.")

    def _join_files(self, row: dict) -> None:
        """Prepend the last episodes to the Parquet files of a new one, and set its position in `row`."""
        last, staging = self._last_row, self.meta.root
        if last is None:
            return
        patterns = {"data": self.meta.data_path, "meta/episodes": DEFAULT_EPISODES_PATH}
        old, new = ({kind: parquet_path(at, kind, patterns[kind]) for kind in patterns} for at in (last, row))
        joined = [kind for kind, path in old.items() if not is_full(self.root / path)]
        for kind in joined:
            row |= {key: last[key] for key in (f"{kind}/chunk_index", f"{kind}/file_index")}
        set_values(staging / new["meta/episodes"], row)
        for kind in joined:
            one_group = kind == "meta/episodes"  # with hundreds of columns, each row group takes 28 kB
            append(self.root / old[kind], staging / new[kind], staging / old[kind], one_group)

    def _publish(self) -> None:
        """Move the files in the staging folder into the dataset, `meta/info.json` after what it counts."""
        staging = self.meta.root
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        last = [path for path in files if path in (staging / INFO_PATH, staging / STATS_PATH)]
        sync(*files)
        for group in ([path for path in files if path not in last], last):
            targets = [self.root / path.relative_to(staging) for path in group]
            for path, target in zip(group, targets, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
            folders = {parent for target in targets for parent in target.parents}
            sync(*(folder for folder in folders if folder.is_relative_to(self.root)))

    def _discard(self) -> None:
        """Remove what LeRobot has written of an episode that cannot be saved."""
        for owner in (self.meta, self.writer):
            if owner._pq_writer is not None:
                with suppress(OSError):
                    owner._pq_writer.close()
                owner._pq_writer.is_open = False  # or its finaliser would try again to write
                owner._pq_writer = None
        self.meta._metadata_buffer.clear()
        self.meta.latest_episode = self.writer._latest_episode = None
        self.clear_episode_buffer()
        shutil.rmtree(self.meta.root)
        self.meta.root.mkdir()


def _embedded(value: Any) -> Any:
    """Return the bytes of an image in memory, as `datasets.Image` stores it; the path of a file stays."""
    return {"bytes": value.getvalue(), "path": value.name} if isinstance(value, EncodedImage) else value


def _check_options(options: dict) -> None:
    found = options.get("batch_encoding_size", 1)
    if found != 1:
        raise ValueError(f"batch_encoding_size: found {found}, expected 1: an episode has its videos.")


def _is_complete(path: str) -> bool:
    """Tell whether an image was written to its end."""
    try:
        if path.endswith(".png"):
            with open(path, "rb") as file:
                file.seek(-len(_PNG_END), os.SEEK_END)
                return file.read() == _PNG_END
        with PIL.Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True


@contextmanager
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Raise OSError for an error that a full disk has caused in a thread of LeRobot."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if shutil.disk_usage(folder).free >= 2**20:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
