# SPDX-License-Identifier: Apache-2.0
"""Convert one source of a mixture: rename cameras, normalise state and action, and pad them with zeros.

If rate, size and codec agree, no image is decoded: videos are linked and tables rewritten. Otherwise every
frame is decoded, resized and encoded again, in the storage that most frames have already.
"""

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

from lerobot_processor_so101.atomic import link_or_copy

from .mixture import INDEX_COLUMNS, MixtureConfig, SourceConfig

ROBOT = "mixture"
_ENCODERS = {"av1": "libsvtav1"}  # encoders whose name differs from the codec


class Storage(NamedTuple):
    """Storage of images.

    Attributes:
        dtype: "video" or "image".
        codec, pixels: codec and pixel format of videos.
    """

    dtype: str
    codec: str = ""
    pixels: str = ""

    def info(self, config: MixtureConfig) -> dict[str, Any]:
        """Return the entry in LeRobot's metadata."""
        if self.dtype != "video":
            return {"is_depth_map": False}
        size = {"video.height": config.height, "video.width": config.width, "video.channels": 3}
        codec = {"video.codec": self.codec, "video.pix_fmt": self.pixels, "video.fps": config.fps}
        return {**size, **codec, "has_audio": False, "is_depth_map": False}


def storage_of(config: MixtureConfig) -> Storage:
    """Return the storage of the mixture: that of most frames with the right rate and size."""
    frames: Counter[Storage] = Counter()
    for source in config.sources:
        stored = _matching_storage(config, source)
        if stored is not None:
            frames[stored] += source.meta.total_frames
    return frames.most_common(1)[0][0] if frames else Storage("video", "av1", "yuv420p")


def _matching_storage(config: MixtureConfig, source: SourceConfig) -> Storage | None:
    """Return the storage of all cameras of a source; None if they differ, or have another rate or size."""
    features = [source.meta.features[key] for key in source.cameras.values()]
    sizes = {tuple(feature["shape"]) for feature in features}
    if source.meta.fps != config.fps or sizes != {(config.height, config.width, 3)}:
        return None
    found = set()
    for feature in features:
        info = (feature.get("info") or {}) if feature["dtype"] == "video" else {}
        found.add(Storage(feature["dtype"], info.get("video.codec", ""), info.get("video.pix_fmt", "")))
    return found.pop() if len(found) == 1 else None


def mixed_features(config: MixtureConfig) -> dict[str, dict[str, Any]]:
    """Return the features of the mixture."""
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
    """Normalise by a source's own statistics to mean 0 and standard deviation 1, and pad with zeros.

    Args:
        meta, key: of the source; the key is empty for none.
        size: in the mixture.
    """

    def __init__(self, meta: LeRobotDatasetMetadata, key: str, size: int) -> None:
        self.key, self.size = key, size
        stats = (meta.stats or {}).get(key, {}) if key else {}
        self.mean = np.asarray(stats.get("mean", []), np.float32)
        std = np.asarray(stats.get("std", []), np.float32)
        self.std = np.where(std > 1e-6, std, 1.0).astype(np.float32)  # constant values become 0

    def __call__(self, values: np.ndarray | None, count: int) -> np.ndarray:
        """Convert values, (count, own size) -> (count, size); None gives zeros."""
        result = np.zeros((count, self.size), np.float32)
        if values is not None:
            result[:, : values.shape[1]] = (values - self.mean) / self.std
        return result


def scales(config: MixtureConfig, source: SourceConfig) -> dict[str, Scale]:
    """Return the scales of state and action, by the mixture's keys."""
    wanted = ((ACTION, source.action, config.action_dim), (OBS_STATE, source.state, config.state_dim))
    return {key: Scale(source.meta, own, size) for key, own, size in wanted if size}


def convert_source(config: MixtureConfig, source: SourceConfig, episodes: list[int], out: Path) -> None:
    """Write chosen episodes, in order, of a source in the mixture's format; replaces what is in `out`."""
    shutil.rmtree(out, ignore_errors=True)
    if _matching_storage(config, source) != storage_of(config):
        _reencode(config, source, episodes, out)
        return
    chosen = out.with_name(f"{out.name}_chosen")
    shutil.rmtree(chosen, ignore_errors=True)
    meta = source.meta
    others = sorted(set(range(meta.total_episodes)) - set(episodes))
    if others:
        dataset = LeRobotDataset(meta.repo_id, root=meta.root, revision=meta.revision)
        meta = delete_episodes(dataset, others, chosen, meta.repo_id).meta
    _rewrite_tables(config, source, meta, out)
    shutil.rmtree(chosen, ignore_errors=True)


def _rewrite_tables(
    config: MixtureConfig, source: SourceConfig, meta: LeRobotDatasetMetadata, out: Path
) -> None:
    """Give all episodes of a dataset the mixture's names and numbers, and link its videos."""
    root, names = Path(meta.root), {key: f"{OBS_IMAGES}.{name}" for name, key in source.cameras.items()}
    features, stored = mixed_features(config), storage_of(config)
    for name in names.values():
        features[name] |= {"info": stored.info(config)}
    features |= {key: meta.features[key] for key in INDEX_COLUMNS}
    schema = get_hf_features_from_features(features).arrow_schema
    by_key, numbers = scales(config, source), []
    for file in sorted({meta.get_data_file_path(number) for number in range(meta.total_episodes)}):
        table = pq.read_table(root / file)
        columns = {key: table[key] for key in INDEX_COLUMNS}
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
            video = str(meta.get_video_file_path(number, key))  # of several episodes
            link_or_copy(root / video, out / video.replace(f"videos/{key}/", f"videos/{name}/", 1))
    _write_meta(meta, features, names, pd.concat(numbers), list(by_key), out)


def _write_meta(
    meta: LeRobotDatasetMetadata,
    features: dict[str, dict[str, Any]],
    names: dict[str, str],
    numbers: pd.DataFrame,
    keys: list[str],
    out: Path,
) -> None:
    """Write tables of episodes and tasks, statistics and info, with the mixture's names."""
    rows, every = [], []
    groups = dict(list(numbers.groupby("episode_index")))
    for row in load_nested_dataset(Path(meta.root) / EPISODES_DIR).to_list():  # with statistics
        kept = {key: value for key, value in row.items() if not key.startswith(("stats/", "videos/"))}
        kept |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}  # one file, see below
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
        for name, own in stats.items():
            kept |= {f"stats/{name}/{last}": value.tolist() for last, value in own.items()}
        rows.append(kept)
    write_episodes(Dataset.from_list(rows), out)
    write_tasks(meta.tasks, out)
    write_stats(aggregate_stats(every), out)
    changed = {"features": features, "robot_type": ROBOT, "splits": {"train": f"0:{len(rows)}"}}
    write_info(type(meta.info).from_dict({**meta.info.to_dict(), **changed}), out)


def _reencode(config: MixtureConfig, source: SourceConfig, episodes: list[int], out: Path) -> None:
    """Decode every frame, drop those beyond the mixture's rate, resize and encode again."""
    stored = storage_of(config)
    meta, by_key = source.meta, scales(config, source)
    dataset = LeRobotDataset(meta.repo_id, root=meta.root, revision=meta.revision, episodes=episodes)
    codec = _ENCODERS.get(stored.codec, stored.codec)
    made = LeRobotDataset.create(
        f"local/{out.name}",
        config.fps,
        mixed_features(config),
        root=out,
        robot_type=ROBOT,
        use_videos=stored.dtype == "video",
        rgb_encoder=RGBEncoderConfig(vcodec=codec) if codec else None,
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
                # (3, h, w) in [0, 1] -> (H, W, 3) uint8, with a border
                image = 255 * resize_with_pad(item[key][None], config.height, config.width, pad_value=0)[0]
                image = image.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
                frame[f"{OBS_IMAGES}.{name}"] = image.numpy()
            made.add_frame(frame)
        made.save_episode()
        first += length
    made.finalize()
