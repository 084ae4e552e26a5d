# SPDX-License-Identifier: Apache-2.0
"""The work as two datatrove steps: episodes, which workers share, and putting the dataset together."""

import ctypes
import os
import sys
from typing import Any

import torch
from datatrove.pipeline.base import PipelineStep
from loguru import logger as datatrove_logger
from tqdm import tqdm

from .assemble import assemble
from .config import JobConfig
from .frames import ahead, read_batches
from .job import Job, PartWriter, report_failure
from .models import Models
from .source import Source

# Workers import this module before they log: the command has its own bar, and its errors are one line each.
datatrove_logger.disable("datatrove")


def prepare(config: JobConfig, rank: int = 0) -> tuple[Job, Models]:
    """What is to be done and with which models; what is quickly found wrong comes first.

    Raises:
        ValueError, FileNotFoundError: a source or models that do not work.
    """
    source = Source(config.source_root, config.repo_id)
    pictures = source.pictures(config.cameras)
    models = config.make_models(rank)
    return Job(config, source, models.columns(pictures)), models


class PrecomputeEpisodes(PipelineStep):
    """Look at the episodes of one worker: every `world_size`-th of those that are not done.

    Args:
        config: options of the command.
    """

    name = "so101-precompute"
    type = "PERCEPTION"

    def __init__(self, config: JobConfig) -> None:
        super().__init__()
        self.config = config

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Do a worker's share.

        Raises:
            ValueError: frames or models that do not work.
        """
        if self.config.executor == "local" and world_size > 1:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
        try:
            job, models = prepare(self.config, rank)
            job.check()
            work(job, models, rank, world_size)
        except Exception as error:
            report_failure(self.config.partial, rank, error)
            raise


def work(job: Job, models: Models, rank: int = 0, world_size: int = 1) -> None:
    """Look at every `world_size`-th episode that is not done."""
    if models.device.type == "cpu":
        keep_memory()
    episodes = [episode for episode in job.pending() if episode.index % world_size == rank]
    cameras = list(dict.fromkeys(column.camera for column in job.columns))
    batches = read_batches(job.source, episodes, cameras, models.batch_size)
    frames = sum(episode.length for episode in job.source.episodes)
    done = frames - sum(episode.length for episode in episodes)
    writer: PartWriter | None = None
    with tqdm(total=frames, initial=done, unit="frame", disable=world_size > 1) as bar:
        for batch in ahead(batches):
            if writer is None or writer.episode is not batch.episode:
                writer = PartWriter(job, batch.episode)
            try:
                values = models.perceive(batch.pictures, job.columns)
            except ValueError as error:
                end = batch.start + batch.length - 1
                raise ValueError(
                    f"episode {batch.episode.index}, frames {batch.start} to {end}: {error}"
                ) from error
            writer.write(batch, {key: value.numpy() for key, value in values.items()})
            bar.update(batch.length)


def keep_memory() -> None:
    """Let glibc keep large blocks that were freed for the next ones.

    Otherwise each goes back to the system, which clears new ones page by page: with batches of four 640x480 pictures
    that takes longer than the network.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)  # not every libc has it
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


class AssembleDataset(PipelineStep):
    """Put the dataset together once every episode is done; a job of its own on a cluster.

    Args:
        config: options of the command.
    """

    name = "so101-precompute-assemble"
    type = "PERCEPTION"

    def __init__(self, config: JobConfig) -> None:
        super().__init__()
        self.config = config

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Put it together."""
        print(assemble(prepare(self.config)[0]))
