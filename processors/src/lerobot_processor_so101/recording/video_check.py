# SPDX-License-Identifier: Apache-2.0
"""Check that every video of a dataset has a frame for every row."""

from collections import Counter
from pathlib import Path

import av
from lerobot.datasets import LeRobotDatasetMetadata


def count_frames(path: Path) -> int:
    """Count the encoded frames of a video file, without decoding them.

    Raises:
        ValueError: if the file is no readable video.
    """
    try:
        with av.open(str(path)) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: this video cannot be read ({error}); the dataset is damaged.") from error


def check_videos(root: Path) -> None:
    """Compare the videos of a dataset with its episodes.

    A video file holds one or more episodes. Each episode must span as many frame periods as it has rows, and
    the file must hold as many frames as all its episodes together.

    Args:
        root: folder of a LeRobotDataset v3.

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
