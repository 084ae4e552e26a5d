# SPDX-License-Identifier: Apache-2.0
"""Read the frames of a dataset in order, bit for bit as `LeRobotDataset` does.

LeRobot's own decoder decodes many frames per call: none is decoded twice, and colours are converted by the
code that policies train with.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from lerobot.configs.video import DEPTH_METER_UNIT, DEPTH_MILLIMETER_UNIT, DepthEncoderConfig
from lerobot.datasets.depth_utils import MM_PER_METRE, dequantize_depth
from lerobot.datasets.io_utils import pil_to_chw_tensor
from lerobot.datasets.video_utils import FrameTimestampError, decode_video_frames
from lerobot.utils.import_utils import get_safe_default_video_backend
from torch import Tensor

from ..perception.keys import image_key
from .source import Episode, Source

DECODED_AT_ONCE = 32  # frames; opening a video and seeking in it takes as long as decoding some
TOLERANCE = 1e-4  # seconds; the default of LeRobotDataset

# Without FFmpeg's libraries, each search for the decoder tries to load them again.
_backend = cache(get_safe_default_video_backend)


@dataclass(frozen=True)
class Batch:
    """Consecutive frames of one episode.

    Attributes:
        start: index of the first frame in it.
        images: (B, 3, H, W) float32 in [0, 1], by camera.
    """

    episode: Episode
    start: int
    images: dict[str, Tensor]

    @property
    def length(self) -> int:
        """Number of frames."""
        return len(next(iter(self.images.values())))


def read_batches(
    source: Source, episodes: Iterable[Episode], cameras: Sequence[str], batch_size: int
) -> Iterator[Batch]:
    """Read episodes one after another.

    Raises:
        ValueError: if frames are missing; the message names the file and the episode.
    """
    keys = [image_key(camera) for camera in cameras]
    for episode in episodes:
        table = _rows(source, episode, keys)
        for begin in range(0, episode.length, DECODED_AT_ONCE):
            decoded = [_decode(source, episode, key, table, begin) for key in keys]
            for start in range(0, min(DECODED_AT_ONCE, episode.length - begin), batch_size):
                images = {}
                for camera, frames in zip(cameras, decoded, strict=True):
                    some = frames[start : start + batch_size]
                    images[camera] = some if some.is_floating_point() else some.type(torch.float32) / 255
                yield Batch(episode, begin + start, images)


def ahead[Item](items: Iterable[Item]) -> Iterator[Item]:
    """Compute the next item in a thread while the present one is being used."""
    iterator = iter(items)
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, iterator, end)
        while (item := future.result()) is not end:
            future = pool.submit(next, iterator, end)
            yield item


def read_values(source: Source, episode: Episode, key: str) -> Tensor:
    """Read a one-channel image or a vector of all frames of an episode.

    Returns:
        (N, 1, H, W) float32, in millimetres if it is a depth map with a unit, or (N, D) float32.

    Raises:
        ValueError: if frames are missing; the message names the file and the episode.
    """
    table, feature = _rows(source, episode, [key]), source.features[key]
    if feature["dtype"] not in ("image", "video"):
        return torch.tensor(table[key].combine_chunks().flatten().to_numpy()).unflatten(0, (len(table), -1))
    begins = range(0, len(table), DECODED_AT_ONCE)
    planes = torch.cat([_decode(source, episode, key, table, begin) for begin in begins])
    if key in episode.videos:
        encoder = DepthEncoderConfig.from_video_info(feature.get("info"))
        return dequantize_depth(
            planes,
            depth_min=encoder.depth_min,
            depth_max=encoder.depth_max,
            shift=encoder.shift,
            use_log=encoder.use_log,
            output_unit=DEPTH_MILLIMETER_UNIT,
        )
    in_metres = (feature.get("info") or {}).get("depth_unit") == DEPTH_METER_UNIT
    return planes * MM_PER_METRE if in_metres else planes


def _rows(source: Source, episode: Episode, keys: Sequence[str]) -> Any:
    """Read timestamps, and the columns of the keys without video."""
    columns = ["timestamp", *(key for key in keys if key not in episode.videos)]
    path = source.root / episode.data_file
    table = pq.read_table(path, columns=columns, filters=[("episode_index", "=", episode.index)])
    if table.num_rows != episode.length:
        raise ValueError(
            f"{path}: episode {episode.index}: found {table.num_rows} frames, expected {episode.length}; the "
            "dataset is damaged."
        )
    return table


def _decode(source: Source, episode: Episode, key: str, table: Any, begin: int) -> Tensor:
    """Decode frames from `begin` on: (B, 3, H, W) uint8 or float32; depth or its codes (B, 1, H, W)."""
    rows = table.slice(begin, DECODED_AT_ONCE)
    if key in episode.videos:
        return _video_frames(source, episode, key, rows["timestamp"].to_pylist())
    frames = []
    for number, image in enumerate(rows[key].to_pylist(), begin):
        try:
            frames.append(_decode_image(image, key in source.meta.depth_keys))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{source.root / episode.data_file}: episode {episode.index}, frame {number}: {key} is no "
                "readable image. Delete the episode with `lerobot-edit-dataset`."
            ) from error
    return torch.stack(frames)


def _decode_image(image: dict[str, Any], is_map: bool) -> Tensor:
    """Decode an image of a Parquet file: (3, H, W) or, for a map of class ids or depth, (1, H, W) float32."""
    pixels = None
    if is_map and image["bytes"]:  # OpenCV decodes a map of uint16 ten times as fast as PIL, and equally
        pixels = cv2.imdecode(np.frombuffer(image["bytes"], np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is not None and pixels.dtype == np.uint16 and pixels.ndim == 2:
        return torch.from_numpy(pixels.astype(np.float32))[None]
    return pil_to_chw_tensor(datasets.Image().decode_example(image))


def _video_frames(source: Source, episode: Episode, key: str, timestamps: list[float]) -> Tensor:
    depth = key in source.meta.depth_keys
    file, begin = episode.videos[key]
    times = [begin + timestamp for timestamp in timestamps]
    try:
        return decode_video_frames(
            source.root / file, times, TOLERANCE, _backend(), return_uint8=True, is_depth=depth
        )
    except (FrameTimestampError, av.FFmpegError, RuntimeError, IndexError) as error:
        found = _count_frames(source.root / file, begin, begin + episode.length / source.meta.fps)
        raise ValueError(
            f"{source.root / file}: episode {episode.index}: found {found} frames, expected "
            f"{episode.length}; the video is truncated or damaged. Replace it, or delete the episode with "
            "`lerobot-edit-dataset`."
        ) from error


def _count_frames(path: Path, start: float, end: float) -> int:
    """Count the frames of a video that can be decoded from `start` until before `end` [s]."""
    count = 0
    with suppress(av.FFmpegError, IndexError), av.open(str(path)) as container:
        for frame in container.decode(video=0):  # until the damage
            if frame.time is not None and start - TOLERANCE <= frame.time < end - TOLERANCE:
                count += 1
    return count
