# SPDX-License-Identifier: Apache-2.0
"""The work as two datatrove steps: episodes, which workers share, and the assembly of the dataset."""

import os
from typing import Any

import torch
from datatrove.pipeline.base import PipelineStep
from loguru import logger as datatrove_logger
from tqdm import tqdm

from ..models.memory import keep_freed_memory
from .assemble import assemble
from .config import JobConfig
from .extractor import FeatureExtractor
from .frames import ahead, read_batches
from .job import Job, PartWriter, report_failure
from .source import Source

# Workers import this module before they log; the command has its own progress bar and errors.
datatrove_logger.disable("datatrove")


def prepare(config: JobConfig, rank: int = 0) -> tuple[Job, FeatureExtractor]:
    """Open the source and load the models; the quickest checks come first.

    Raises:
        ValueError, FileNotFoundError: if the source or the models do not work.
    """
    source = Source(config.source_root, config.repo_id)
    image_sizes = source.image_sizes(config.cameras)
    extractor = config.make_extractor(rank)
    return Job(config, source, extractor.columns(image_sizes)), extractor


class PrecomputeEpisodes(PipelineStep):
    """Process the episodes of one worker: every `world_size`-th unfinished one.

    Args:
        config: options of the command.
    """

    name = "so101-precompute"
    type = "PERCEPTION"

    def __init__(self, config: JobConfig) -> None:
        super().__init__()
        self.config = config

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Process a worker's share.

        Raises:
            ValueError: if frames or models do not work.
        """
        if self.config.executor == "local" and world_size > 1:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
        try:
            job, extractor = prepare(self.config, rank)
            job.check()
            work(job, extractor, rank, world_size)
        except Exception as error:
            report_failure(self.config.partial, rank, error)
            raise


def work(job: Job, extractor: FeatureExtractor, rank: int = 0, world_size: int = 1) -> None:
    """Process every `world_size`-th unfinished episode."""
    if extractor.device.type == "cpu":
        keep_freed_memory()
    episodes = [episode for episode in job.pending() if episode.index % world_size == rank]
    cameras = list(dict.fromkeys(column.camera for column in job.columns))
    batches = read_batches(job.source, episodes, cameras, extractor.batch_size)
    total = sum(episode.length for episode in job.source.episodes)
    finished = total - sum(episode.length for episode in episodes)
    writer: PartWriter | None = None
    with tqdm(total=total, initial=finished, unit="frame", disable=world_size > 1) as bar:
        for batch in ahead(batches):
            if writer is None or writer.episode is not batch.episode:
                writer = PartWriter(job, batch.episode)
            try:
                values = extractor.extract(batch.images, job.columns)
            except ValueError as error:
                end = batch.start + batch.length - 1
                raise ValueError(
                    f"episode {batch.episode.index}, frames {batch.start} to {end}: {error}"
                ) from error
            writer.write(batch, {key: value.numpy() for key, value in values.items()})
            bar.update(batch.length)


class AssembleDataset(PrecomputeEpisodes):
    """Assemble the dataset once every episode is finished; a job of its own on a cluster."""

    name = "so101-precompute-assemble"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Assemble it."""
        print(assemble(prepare(self.config)[0]))
