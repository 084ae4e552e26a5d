# SPDX-License-Identifier: Apache-2.0
"""What a mixture of datasets is made of: the file that says it, and the one that a made mixture carries.

Stock training takes one dataset. A mixture is one: `hlrp-mix` writes it, from a file that people can read, and leaves in its
`meta/mixture.json` what training must know of each episode: whether its actions count, and how many numbers they have.
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

NOTES = Path("meta") / "mixture.json"


@dataclass
class SourceConfig:
    """A dataset that goes in.

    Args:
        repo_id: its name on the Hub, or for messages.
        root: its folder; by default LeRobot's own place for `repo_id`, to which it is downloaded.
        revision: on the Hub; by default that of LeRobot's version of the format.
        weight: share of the mixture's frames, relative to the other sources; 0 takes all there are of every source.
        cameras: key of each of the mixture's cameras in this dataset, such as `{primary: observation.images.top}`.
        state, action: keys; empty where it has none.
        labelled: share of its episodes whose actions may be learned from.
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
        """For messages and folders."""
        return self.repo_id or (self.root.name if self.root else "")

    @cached_property
    def meta(self) -> LeRobotDatasetMetadata:
        """Its metadata.

        Raises:
            ValueError: there is no such dataset.
        """
        if not self.name:
            raise ValueError("sources: found one without repo_id and root, expected at least one of them.")
        if self.root is not None and not (self.root / "meta" / "info.json").is_file():
            raise ValueError(f"sources: found no dataset in {self.root} (no meta/info.json).")
        try:
            return LeRobotDatasetMetadata(self.repo_id or f"local/{self.name}", self.root, self.revision)
        except OSError as error:
            raise ValueError(f"sources: {self.name!r} cannot be had. {str(error).splitlines()[0]}") from error

    def check(self, cameras: list[str]) -> None:
        """Refuse keys that the dataset has not, and shares that are none.

        Raises:
            ValueError: the message names the source and the key.
        """
        if sorted(self.cameras) != sorted(cameras):
            raise ValueError(
                f"sources: {self.name!r} has cameras {sorted(self.cameras)}, expected {sorted(cameras)}, as the first one."
            )
        wanted = {f"cameras.{name}": key for name, key in self.cameras.items()}
        wanted |= {name: key for name, key in (("state", self.state), ("action", self.action)) if key}
        for name, key in wanted.items():
            if key not in self.meta.features:
                raise ValueError(
                    f"sources: {self.name!r}, {name}: found no {key!r}, expected one of "
                    f"{sorted(set(self.meta.features) - _OWN)}; or '' for none."
                )
        if not 0 <= self.labelled <= 1 or self.weight < 0:
            raise ValueError(
                f"sources: {self.name!r} has labelled = {self.labelled} and weight = {self.weight}, expected 0 to 1, and 0 "
                "or more."
            )

    def numbers(self, key: str) -> int:
        """Of state or action; 0 where there is none."""
        return int(self.meta.features[key]["shape"][0]) if key else 0


_OWN = {"timestamp", "frame_index", "episode_index", "index", "task_index"}


@dataclass
class MixtureConfig:
    """Options of `hlrp-mix`.

    Args:
        output: folder of the mixture; it must not exist.
        sources: what goes in; all have the same names of cameras.
        fps: of the mixture [Hz]. Faster sources are thinned out; slower ones are refused.
        height, width: of its pictures. Others are made smaller or larger, with a border where the shape differs.
        seed: of the choice of episodes.
    """

    output: Path
    sources: list[SourceConfig] = field(default_factory=list)
    fps: int = 10
    height: int = 256
    width: int = 256
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be mixed.

        Raises:
            ValueError: the message names the source and the key.
        """
        if not self.sources:
            raise ValueError("sources: found none, expected at least one.")
        for source in self.sources:
            source.check(sorted(self.sources[0].cameras))
            if source.meta.fps < self.fps:
                raise ValueError(
                    f"fps: found {self.fps} Hz, and {source.name!r} has {source.meta.fps} Hz, expected at most that: frames "
                    "are left out, not made up."
                )
        weighted = [source.weight > 0 for source in self.sources]
        if any(weighted) and not all(weighted):
            raise ValueError("sources: found some with a weight and some without, expected all or none.")

    @property
    def state_dim(self) -> int:
        """The largest of all sources."""
        return max(source.numbers(source.state) for source in self.sources)

    @property
    def action_dim(self) -> int:
        """The largest of all sources."""
        return max(source.numbers(source.action) for source in self.sources)

    def episodes(self) -> list[list[int]]:
        """Which episodes of each source go in, so that their frames have the shares asked for and most are used."""
        lengths = [np.asarray(source.meta.episodes["length"]) for source in self.sources]
        seconds = [each / source.meta.fps for each, source in zip(lengths, self.sources, strict=True)]
        if not self.sources[0].weight:
            return [list(range(len(each))) for each in lengths]
        scale = min(each.sum() / s.weight for each, s in zip(seconds, self.sources, strict=True))
        chosen = []
        for each, source in zip(seconds, self.sources, strict=True):
            order = np.random.default_rng(self.seed).permutation(len(each))
            enough = int(np.searchsorted(np.cumsum(each[order]), scale * source.weight - 1e-6)) + 1
            chosen.append(sorted(order[:enough].tolist()))
        return chosen

    def labelled(self, episodes: list[int], source: SourceConfig) -> list[bool]:
        """Of which of the chosen episodes the actions count."""
        if not source.action:
            return [False] * len(episodes)
        count = round(source.labelled * len(episodes))
        chosen = np.random.default_rng(self.seed + 1).permutation(len(episodes))[:count]
        return np.isin(np.arange(len(episodes)), chosen).tolist()


@dataclass(frozen=True)
class MixtureNotes:
    """What a made mixture says of its episodes, in order.

    Attributes:
        labelled: whether the actions of each count.
        action_dim: numbers of an action of each, before they were filled up.
        sources: for people: name, episodes, and mean and standard deviation that state and action were divided by.
    """

    labelled: list[bool]
    action_dim: list[int]
    sources: list[dict[str, Any]]

    def save(self, root: Path) -> None:
        """Write them into a dataset."""
        (root / NOTES).write_text(json.dumps(asdict(self), indent=1))

    @cached_property
    def per_episode(self) -> tuple[Tensor, Tensor]:
        """`labelled` and `action_dim` as tensors, for look-ups in training."""
        return torch.tensor(self.labelled), torch.tensor(self.action_dim)

    @classmethod
    def of(cls, dataset: LeRobotDatasetMetadata | None) -> "MixtureNotes | None":
        """Those of a dataset; None if it is no mixture."""
        if dataset is None or not (Path(dataset.root) / NOTES).is_file():
            return None
        return cls(**json.loads((Path(dataset.root) / NOTES).read_text()))
