# SPDX-License-Identifier: Apache-2.0
"""One source of a mixture, in the mixture's form: its cameras by their names, its numbers normalised and filled up.

Where rate, size and codec agree nothing is decoded: videos are linked, and tables rewritten. Elsewhere every frame is read,
resized and encoded again, in the form that most frames have already.
"""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.compute_stats import aggregate_stats, compute_episode_stats
from lerobot.datasets.dataset_tools import delete_episodes
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.io_utils import (
    load_nested_dataset,
    write_episodes,
    write_info,
    write_stats,
    write_table_one_row_group_per_episode,
    write_tasks,
)
from lerobot.datasets.utils import EPISODES_DIR
from lerobot.policies.common.vla_utils import resize_with_pad
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from .mixture import MixtureConfig, SourceConfig

_KEPT = ("timestamp", "frame_index", "episode_index", "index", "task_index")
ROBOT = "mixture"
_ENCODERS = {"av1": "libsvtav1"}  # of codecs whose encoder has another name


class Storage(NamedTuple):
    """How pictures are stored.

    Attributes:
        dtype: "video" or "image".
        codec, pixels: of videos.
    """

    dtype: str
    codec: str = ""
    pixels: str = ""

    @classmethod
    def of(cls, source: SourceConfig, key: str) -> "Storage":
        """That of a camera."""
        feature = source.meta.features[key]
        info = feature.get("info") or {}
        if feature["dtype"] != "video":
            return cls(feature["dtype"])
        return cls("video", info.get("video.codec", ""), info.get("video.pix_fmt", ""))

    def info(self, config: MixtureConfig) -> dict[str, Any]:
        """What LeRobot notes of it."""
        if self.dtype != "video":
            return {"is_depth_map": False}
        return {
            "video.height": config.height,
            "video.width": config.width,
            "video.codec": self.codec,
            "video.pix_fmt": self.pixels,
            "video.fps": config.fps,
            "video.channels": 3,
            "has_audio": False,
            "is_depth_map": False,
        }


def storage_of(config: MixtureConfig) -> Storage:
    """The form of the mixture: the one in which most frames of the right rate and size are stored already."""
    frames: Counter[Storage] = Counter()
    for source in config.sources:
        stored = {Storage.of(source, key) for key in source.cameras.values()}
        if _fits(config, source) and len(stored) == 1:
            frames[stored.pop()] += source.meta.total_frames
    return frames.most_common(1)[0][0] if frames else Storage("video", "av1", "yuv420p")


def agrees(config: MixtureConfig, source: SourceConfig) -> bool:
    """Whether pictures of a source can stay as they are."""
    stored = {Storage.of(source, key) for key in source.cameras.values()}
    return _fits(config, source) and stored == {storage_of(config)}


def _fits(config: MixtureConfig, source: SourceConfig) -> bool:
    shapes = {tuple(source.meta.features[key]["shape"]) for key in source.cameras.values()}
    return source.meta.fps == config.fps and shapes == {(config.height, config.width, 3)}


def mixed_features(config: MixtureConfig) -> dict[str, dict[str, Any]]:
    """Features of the mixture."""
    features: dict[str, dict[str, Any]] = {}
    for key, size in ((ACTION, config.action_dim), (OBS_STATE, config.state_dim)):
        if size:
            names = [f"{key.split('.')[-1]}_{number}" for number in range(size)]
            features[key] = {"dtype": "float32", "shape": (size,), "names": names}
    for name in sorted(config.sources[0].cameras):
        features[f"{OBS_IMAGES}.{name}"] = {
            "dtype": storage_of(config).dtype,
            "shape": (config.height, config.width, 3),
            "names": ["height", "width", "channels"],
        }
    return features


class Scale:
    """Mean 0 and standard deviation 1 by a source's own statistics, and zeros up to the mixture's size.

    Args:
        meta: of the source.
        key: in the source; empty for none.
        size: in the mixture.
    """

    def __init__(self, meta: LeRobotDatasetMetadata, key: str, size: int) -> None:
        self.key, self.size = key, size
        stats = (meta.stats or {}).get(key, {}) if key else {}
        self.mean = np.asarray(stats.get("mean", []), np.float32)
        std = np.asarray(stats.get("std", []), np.float32)
        self.std = np.where(std > 1e-6, std, 1.0).astype(np.float32)  # what never moves stays where it is

    def __call__(self, values: np.ndarray | None, count: int) -> np.ndarray:
        """(count, size) of (count, own size); zeros of None."""
        result = np.zeros((count, self.size), np.float32)
        if values is not None:
            result[:, : values.shape[1]] = (values - self.mean) / self.std
        return result

    def notes(self) -> dict[str, list[float]]:
        """For the mixture's notes."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


def scales(config: MixtureConfig, source: SourceConfig) -> dict[str, Scale]:
    """Of state and action, by the mixture's keys."""
    wanted = ((ACTION, source.action, config.action_dim), (OBS_STATE, source.state, config.state_dim))
    return {key: Scale(source.meta, own, size) for key, own, size in wanted if size}


def conform(config: MixtureConfig, source: SourceConfig, episodes: list[int], out: Path) -> None:
    """Write chosen episodes of a source in the mixture's form.

    Args:
        config: of the mixture.
        source: of which.
        episodes: in order.
        out: folder; what lies there from a stopped run is removed.
    """
    shutil.rmtree(out, ignore_errors=True)
    if not agrees(config, source):
        rewrite(config, source, episodes, out)
        return
    chosen = out.with_name(f"{out.name}_chosen")
    shutil.rmtree(chosen, ignore_errors=True)
    meta = source.meta
    others = sorted(set(range(meta.total_episodes)) - set(episodes))
    if others:
        meta = delete_episodes(
            LeRobotDataset(meta.repo_id, root=meta.root, revision=meta.revision), others, chosen, meta.repo_id
        ).meta
    relabel(config, source, meta, out)
    shutil.rmtree(chosen, ignore_errors=True)


def relabel(config: MixtureConfig, source: SourceConfig, meta: LeRobotDatasetMetadata, out: Path) -> None:
    """Give a dataset the mixture's names and numbers, without looking at a picture.

    Args:
        config: of the mixture.
        source: says what is what.
        meta: of the dataset, all of whose episodes are taken.
        out: folder.
    """
    root, names = Path(meta.root), {key: f"{OBS_IMAGES}.{name}" for name, key in source.cameras.items()}
    features, stored = mixed_features(config), storage_of(config)
    for name in names.values():
        features[name] |= {"info": stored.info(config)}
    features |= {key: meta.features[key] for key in _KEPT}
    schema = get_hf_features_from_features(features).arrow_schema
    by_key, numbers = scales(config, source), []
    for file in sorted({meta.get_data_file_path(number) for number in range(meta.total_episodes)}):
        table = pq.read_table(root / file)
        columns = {key: table[key] for key in _KEPT}
        columns |= {name: table[key] for key, name in names.items() if key in table.column_names}
        frame = table.select(["episode_index"]).to_pandas()
        for key, scale in by_key.items():
            values = np.stack(table[scale.key].to_pylist()) if scale.key else None
            scaled = scale(values, len(table))
            columns[key] = pa.array(list(scaled), schema.field(key).type)
            frame[key] = list(scaled)
        numbers.append(frame)
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        ordered = pa.table({field.name: columns[field.name].cast(field.type) for field in schema})
        write_table_one_row_group_per_episode(ordered, out / file)
    for key, name in names.items() if stored.dtype == "video" else ():
        for number in range(meta.total_episodes):
            _link(root / meta.get_video_file_path(number, key), out / _renamed(meta, number, key, name))
    _write_meta(meta, features, names, pd.concat(numbers), list(by_key), out)


def _renamed(meta: LeRobotDatasetMetadata, number: int, key: str, name: str) -> Path:
    return Path(str(meta.get_video_file_path(number, key)).replace(f"videos/{key}/", f"videos/{name}/", 1))


def _link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system
        shutil.copy2(file, target)


def _write_meta(
    meta: LeRobotDatasetMetadata,
    features: dict[str, dict[str, Any]],
    names: dict[str, str],
    numbers: pd.DataFrame,
    keys: list[str],
    out: Path,
) -> None:
    """Tables about episodes and tasks, statistics and info, with the mixture's names."""
    rows, every = [], []
    groups = dict(list(numbers.groupby("episode_index")))
    for row in load_nested_dataset(Path(meta.root) / EPISODES_DIR).to_list():  # with statistics
        kept = {key: value for key, value in row.items() if not key.startswith(("stats/", "videos/"))}
        stats: dict[str, dict[str, Any]] = {}
        for key, value in row.items():
            kind, _, rest = key.partition("/")
            name, _, last = rest.rpartition("/")
            name = names.get(name, name)
            if kind == "videos" and name in features:
                kept[f"videos/{name}/{last}"] = value
            elif kind == "stats" and name in features and name not in keys:
                stats.setdefault(name, {})[last] = np.asarray(value)
        values = {key: np.stack(groups[row["episode_index"]][key].to_list()) for key in keys}
        stats |= compute_episode_stats(values, features)
        every.append(stats)
        kept |= {
            f"stats/{name}/{last}": value.tolist()
            for name, own in stats.items()
            for last, value in own.items()
        }
        rows.append(kept)
    write_episodes(Dataset.from_list(rows), out)
    write_tasks(meta.tasks, out)
    write_stats(aggregate_stats(every), out)
    info = meta.info
    changed = type(info).from_dict(
        {**info.to_dict(), "features": features, "robot_type": ROBOT, "splits": {"train": f"0:{len(rows)}"}}
    )
    write_info(changed, out)


def rewrite(config: MixtureConfig, source: SourceConfig, episodes: list[int], out: Path) -> None:
    """Read every frame, thin out, resize and encode again."""
    stored = storage_of(config)
    meta, by_key = source.meta, scales(config, source)
    dataset = LeRobotDataset(meta.repo_id, root=meta.root, revision=meta.revision, episodes=episodes)
    made = LeRobotDataset.create(
        f"local/{out.name}",
        config.fps,
        mixed_features(config),
        root=out,
        robot_type=ROBOT,
        use_videos=stored.dtype == "video",
        rgb_encoder=RGBEncoderConfig(vcodec=_ENCODERS.get(stored.codec, stored.codec))
        if stored.codec
        else None,
    )
    first = 0
    for number in episodes:
        length = int(meta.episodes[number]["length"])
        count = int((length - 1) / meta.fps * config.fps + 1e-6) + 1
        for step in range(count):
            item = dataset[first + round(step * meta.fps / config.fps)]
            frame: dict[str, Any] = {"task": item["task"]}
            for key, scale in by_key.items():
                frame[key] = scale(item[scale.key].numpy()[None] if scale.key else None, 1)[0]
            for name, key in source.cameras.items():
                frame[f"{OBS_IMAGES}.{name}"] = _resized(item[key], config)
            made.add_frame(frame)
        made.save_episode()
        first += length
    made.finalize()


def _resized(picture: torch.Tensor, config: MixtureConfig) -> np.ndarray:
    """(H, W, 3) uint8 of (3, h, w) in [0, 1]."""
    padded = resize_with_pad(picture[None], config.height, config.width, pad_value=0)[0]
    return (255 * padded).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
