# SPDX-License-Identifier: Apache-2.0
"""The options of a mixture of datasets, and the notes on its episodes that a finished mixture contains.

LeRobot's training takes one dataset. `hlrp-mix` makes one from the sources that an options file lists. Its
`meta/mixture.json` contains what training needs to know of each episode: whether its actions are learned, and
their size.
"""

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from lerobot_processor_so101.config_checks import check_dataset_folder

NOTES = Path("meta") / "mixture.json"
INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


@dataclass
class SourceConfig:
    """A dataset of the mixture.

    Args:
        repo_id: name on the Hub, or for messages.
        root: folder; by default LeRobot's own folder for `repo_id`, to which it is downloaded.
        revision: on the Hub; by default that of LeRobot's dataset format.
        weight: share of the mixture's duration, relative to the other sources; 0 takes all frames of every
            source.
        cameras: key of each of the mixture's cameras in this dataset, such as `{primary:
            observation.images.top}`.
        state, action: keys; empty if the dataset has none.
        labelled: share of the episodes whose actions are learned.
    """

    repo_id: str = ""
    root: Path | None = None
    revision: str | None = None
    weight: float = 0.0
    cameras: dict[str, str] = field(default_factory=dict)
    state: str = OBS_STATE
    action: str = ACTION
    labelled: float = 1.0

    @property
    def name(self) -> str:
        """Name for messages and folders."""
        return self.repo_id or (self.root.name if self.root else "")

    @cached_property
    def meta(self) -> LeRobotDatasetMetadata:
        """Metadata of the dataset; without one a ValueError."""
        if not self.name:
            raise ValueError("sources: found one without repo_id and root, expected at least one of them.")
        if self.root is not None:
            check_dataset_folder(self.root, "sources")
        try:
            return LeRobotDatasetMetadata(self.repo_id or f"local/{self.name}", self.root, self.revision)
        except OSError as error:
            raise ValueError(f"sources: cannot load {self.name!r}. {str(error).splitlines()[0]}") from error

    def check(self, cameras: list[str]) -> None:
        """Validate the options against the dataset and the names of the mixture's cameras.

        Raises:
            ValueError: if a key or statistics are missing, or a share is out of range; the message names
                the source.
        """
        if sorted(self.cameras) != sorted(cameras):
            raise ValueError(
                f"sources: {self.name!r} has cameras {sorted(self.cameras)}, expected {sorted(cameras)}, as "
                "the first one."
            )
        wanted = {f"cameras.{name}": key for name, key in self.cameras.items()}
        wanted |= {name: key for name, key in (("state", self.state), ("action", self.action)) if key}
        for name, key in wanted.items():
            if key not in self.meta.features:
                raise ValueError(
                    f"sources: {self.name!r}, {name}: found no {key!r}, expected one of "
                    f"{sorted(set(self.meta.features) - set(INDEX_COLUMNS))}; or '' for none."
                )
        for key in filter(None, (self.state, self.action)):
            stats = (self.meta.stats or {}).get(key, {})
            for name in ("mean", "std"):
                if name not in stats or not np.isfinite(stats[name]).all():
                    raise ValueError(
                        f"sources: {self.name!r} has {name} = {stats.get(name)} of {key!r} in "
                        "meta/stats.json, expected finite numbers. Compute the statistics again."
                    )
        if not 0 <= self.labelled <= 1 or self.weight < 0:
            raise ValueError(
                f"sources: {self.name!r} has labelled = {self.labelled} and weight = {self.weight}, expected "
                "0 to 1, and 0 or more."
            )

    def size_of(self, key: str) -> int:
        """Return the size of state or action; 0 if there is none."""
        return int(self.meta.features[key]["shape"][0]) if key else 0


@dataclass
class MixtureConfig:
    """Options of `hlrp-mix`.

    Args:
        output: folder of the mixture; it must not exist.
        sources: datasets, all with the same names of cameras.
        fps: frames per second of the mixture [Hz]. Frames of faster sources are dropped; slower sources are
            rejected.
        height, width: size of the mixture's images [pixels]. Others are resized, with a border if the aspect
            ratio differs.
        seed: random seed of the choice of episodes.
    """

    output: Path
    sources: list[SourceConfig] = field(default_factory=list)
    fps: int = 10
    height: int = 256
    width: int = 256
    seed: int = 0

    def check(self) -> None:
        """Validate the options against the sources.

        Raises:
            ValueError: if a source does not match; the message names the source and the key.
        """
        if not self.sources:
            raise ValueError("sources: found none, expected at least one.")
        for source in self.sources:
            source.check(sorted(self.sources[0].cameras))
            if source.meta.fps < self.fps:
                raise ValueError(
                    f"fps: found {self.fps} Hz, and {source.name!r} has {source.meta.fps} Hz, expected at "
                    "most that: frames are dropped, not interpolated."
                )
        weighted = [source.weight > 0 for source in self.sources]
        if any(weighted) and not all(weighted):
            raise ValueError("sources: found some with a weight and some without, expected all or none.")

    @property
    def state_dim(self) -> int:
        """Largest state of all sources."""
        return max(source.size_of(source.state) for source in self.sources)

    @property
    def action_dim(self) -> int:
        """Largest action of all sources."""
        return max(source.size_of(source.action) for source in self.sources)

    def episodes(self) -> list[list[int]]:
        """Choose episodes of each source, as many as possible with durations in proportion to the weights."""
        seconds = [np.asarray(s.meta.episodes["length"]) / s.meta.fps for s in self.sources]
        if not self.sources[0].weight:
            return [list(range(len(each))) for each in seconds]
        scale = min(each.sum() / s.weight for each, s in zip(seconds, self.sources, strict=True))
        chosen = []
        for each, source in zip(seconds, self.sources, strict=True):
            order = np.random.default_rng(self.seed).permutation(len(each))
            enough = int(np.searchsorted(np.cumsum(each[order]), scale * source.weight - 1e-6)) + 1
            chosen.append(sorted(order[:enough].tolist()))
        return chosen

    def labelled(self, episodes: list[int], source: SourceConfig) -> list[bool]:
        """Choose those of the episodes whose actions are learned."""
        if not source.action:
            return [False] * len(episodes)
        count = round(source.labelled * len(episodes))
        chosen = np.random.default_rng(self.seed + 1).permutation(len(episodes))[:count]
        return np.isin(np.arange(len(episodes)), chosen).tolist()


@dataclass(frozen=True)
class MixtureNotes:
    """Notes of a finished mixture on its episodes, in order.

    Attributes:
        labelled: whether the actions of each episode are learned.
        action_dim: size of the actions of each episode before padding.
        sources: for people: names, numbers of episodes, and mean and standard deviation of state and action.
    """

    labelled: list[bool]
    action_dim: list[int]
    sources: list[dict[str, Any]]

    def save(self, root: Path) -> None:
        """Write the notes into a dataset."""
        (root / NOTES).write_text(json.dumps(asdict(self), indent=1))

    @cached_property
    def per_episode(self) -> tuple[Tensor, Tensor]:
        """`labelled` and `action_dim` as tensors."""
        return torch.tensor(self.labelled), torch.tensor(self.action_dim)

    @classmethod
    def of(cls, dataset: LeRobotDatasetMetadata | None) -> "MixtureNotes | None":
        """Read the notes of a dataset; None if it is not a mixture."""
        if dataset is None or not (Path(dataset.root) / NOTES).is_file():
            return None
        return cls(**json.loads((Path(dataset.root) / NOTES).read_text()))
