# SPDX-License-Identifier: Apache-2.0
"""Check that every video of a dataset has a frame for every row, and write frames to a video."""

import os
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from lerobot.datasets import LeRobotDatasetMetadata


def count_frames(path: Path) -> int:
    """Count the encoded frames of a video without decoding them; raises ValueError if it cannot be read."""
    try:
        with av.open(str(path)) as container:
            count = sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: this video cannot be read ({error}); the dataset is damaged.") from error
    return count


def check_videos(root: Path) -> None:
    """Compare the videos of a LeRobotDataset v3 with its episodes.

    A video file holds one or more episodes. Each episode must span as many frame periods as it has rows, and
    the file must hold as many frames as all its episodes together.

    Raises:
        ValueError: if frames are missing; the message names each file or episode that is short.
    """
    meta = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
    rows = [] if meta.episodes is None else meta.episodes.to_list()
    short = []
    for key in meta.video_keys:
        expected: Counter[Path] = Counter()
        for row in rows:
            expected[meta.get_video_file_path(row["episode_index"], key)] += row["length"]
            span = (row[f"videos/{key}/to_timestamp"] - row[f"videos/{key}/from_timestamp"]) * meta.fps
            if span < row["length"] - 0.5:
                short.append(
                    f"{key}, episode {row['episode_index']}: found {round(span)} frames, "
                    f"expected {row['length']}"
                )
        for path, frames in expected.items():
            found = count_frames(root / path)
            if found < frames:
                short.append(f"{path}: found {found} frames, expected {frames}")
    if short:
        more = f" and {len(short) - 8} more" if len(short) > 8 else ""
        raise ValueError(
            f"{root}: videos lack frames, so images and actions do not line up. "
            f"{'; '.join(short[:8])}{more}. Record these episodes again, or delete them with "
            "`lerobot-edit-dataset --operation.type=delete_episodes`."
        )


class VideoWriter:
    """Write RGB frames of one size to an H.264 .mp4; a context manager.

    The file appears under its name, instead of an existing one, when the context ends, also by an error: with
    the frames written until then. No file appears without a frame.
    """

    def __init__(self, path: Path, fps: float | Fraction) -> None:
        self.path, self._temporary = path, path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._fps = Fraction(fps).limit_denominator(1001)
        self.count = 0  # frames written

    def __enter__(self) -> Self:
        self._container = av.open(str(self._temporary), "w", format="mp4")
        return self

    def write(self, rgb: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8; an odd height or width loses its last row or column."""
        height, width = (side // 2 * 2 for side in rgb.shape[:2])  # yuv420p needs even sides
        if not self.count:
            self._stream = self._container.add_stream("h264", rate=self._fps, options={"crf": "18"})
            self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]))
        self._container.mux(self._stream.encode(frame))
        self.count += 1

    def __exit__(self, *_: object) -> None:
        if self.count:
            self._container.mux(self._stream.encode())
        self._container.close()
        if self.count:
            os.replace(self._temporary, self.path)
        self._temporary.unlink(missing_ok=True)
