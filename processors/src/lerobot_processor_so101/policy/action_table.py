# SPDX-License-Identifier: Apache-2.0
"""The actions of a whole dataset in memory, to look chunks up."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from huggingface_hub import snapshot_download
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.utils.constants import ACTION
from torch import Tensor

logger = logging.getLogger(__name__)


class ActionTable:
    """Actions of a dataset by `index`; its Parquet files are downloaded if there are none, as in streaming.

    Raises:
        ValueError: if no Parquet file is found.
    """

    def __init__(self, meta: LeRobotDatasetMetadata) -> None:
        table = pa.concat_tables(pq.read_table(path, columns=["index", ACTION]) for path in _files(meta))
        index = torch.tensor(table["index"].to_numpy())
        values = table[ACTION].combine_chunks()
        while not pa.types.is_primitive(values.type):  # lists, of fixed size or not
            values = values.flatten()
        actions = torch.tensor(values.to_numpy()).unflatten(0, (len(index), -1)).squeeze(-1)
        # Files of unused episodes may be missing; their rows are zero and never read.
        self.actions = actions.new_zeros(meta.total_frames, *actions.shape[1:])
        self.actions[index] = actions
        self.first = torch.tensor(meta.episodes["dataset_from_index"])
        self.end = torch.tensor(meta.episodes["dataset_to_index"])

    def at(self, index: Tensor) -> Tensor:
        """Return actions, (..., A), by their `index`, (...), on its device."""
        self._move(index.device)
        return self.actions[index]

    def chunks(self, index: Tensor, episode: Tensor, deltas: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return what LeRobot's loader would.

        Args:
            index: of the samples, (B,); their position in the dataset, whatever episodes are selected.
            episode: of the samples, (B,).
            deltas: T frames relative to the sample's.

        Returns:
            The actions (B, T, A), those outside the episode replaced by its first or last one, and whether an
            action is outside, (B, T) bool.
        """
        self._move(index.device)
        wanted = index[:, None] + torch.tensor(deltas, device=index.device)
        first, end = self.first[episode][:, None], self.end[episode][:, None]
        rows = torch.minimum(torch.maximum(wanted, first), end - 1)
        return self.actions[rows], (wanted < first) | (wanted >= end)

    def _move(self, device: torch.device) -> None:
        if self.actions.device != device:
            tensors = (self.actions, self.first, self.end)
            self.actions, self.first, self.end = (tensor.to(device) for tensor in tensors)


def _files(meta: LeRobotDatasetMetadata) -> list[Path]:
    folder = meta.root / "data"
    if not folder.is_dir():
        logger.info("reading the actions of %s from the Hub", meta.repo_id)
        revision, wanted = meta.revision, "data/**"
        folder = Path(
            snapshot_download(meta.repo_id, repo_type="dataset", revision=revision, allow_patterns=wanted)
        )
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise ValueError(f"{folder}: found no Parquet files, expected those of the training dataset.")
    return files
