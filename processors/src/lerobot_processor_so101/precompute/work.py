# SPDX-License-Identifier: Apache-2.0
"""Process the episodes in one or several processes, on Slurm or on Ray, with datatrove.

There are two steps: episodes, which workers share, and the assembly of the dataset.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import multiprocess
import torch
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger as datatrove_logger
from tqdm import tqdm

from ..models.memory import keep_freed_memory
from .assemble import assemble
from .config import FeatureExtractor, JobConfig
from .frames import ahead, read_batches
from .job import Job, PartWriter, failures, report_failure
from .source import Source

# Workers import this module before they log; the command has its own progress bar and errors.
datatrove_logger.disable("datatrove")


def prepare(config: JobConfig, rank: int = 0) -> tuple[Job, FeatureExtractor]:
    """Open the source and load the models, quickest checks first; raises ValueError or FileNotFoundError."""
    source = Source(config.source_root, config.repo_id)
    image_sizes = source.image_sizes(config.cameras)
    extractor = config.make_extractor(rank)
    return Job(config, source, extractor.columns(image_sizes)), extractor


class PrecomputeEpisodes(PipelineStep):
    """Process the episodes of one worker: every `world_size`-th unfinished one."""

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
                frames = f"frames {batch.start} to {batch.start + batch.length - 1}"
                raise ValueError(f"episode {batch.episode.index}, {frames}: {error}") from error
            writer.write(batch, {key: value.numpy() for key, value in values.items()})
            bar.update(batch.length)


class AssembleDataset(PrecomputeEpisodes):
    """Assemble the dataset once every episode is finished; a job of its own on a cluster."""

    name = "so101-precompute-assemble"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Assemble it and print the summary."""
        print(assemble(prepare(self.config)[0]))


def run(config: JobConfig, job: Job, extractor: FeatureExtractor) -> bool:
    """Process all unfinished episodes; return False if Slurm does that later, and assembles the dataset, too.

    Raises:
        RuntimeError: if a worker failed; the message is its error.
    """
    for path in failures(job.folder):
        path.unlink()
    if not job.pending():
        return True
    if config.executor == "slurm":
        _slurm(config, job)
        return False
    if config.executor == "local" and config.workers == 1:
        work(job, extractor)  # without datatrove, whose helper process would outlive a killed command
        return True
    steps, options = [PrecomputeEpisodes(config)], _common(config, job.folder / "logs")
    if config.executor == "ray":
        import ray

        if not ray.is_initialized():  # joins the cluster of RAY_ADDRESS, or starts one on this machine
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        executor = RayPipelineExecutor(steps, **options, **_resources(config))
    else:
        # Imports take seconds: one process imports, and workers are forked from it.
        multiprocess.get_context("forkserver").set_forkserver_preload([PrecomputeEpisodes.__module__])
        executor = LocalPipelineExecutor(steps, **options)
    cause: Exception | None = None
    with _bar(job):
        try:
            executor.run()
        except Exception as error:
            cause = error
    if reported := failures(job.folder):
        raise RuntimeError(reported[0].read_text().strip())
    if missing := len(job.pending()):
        raise RuntimeError(
            f"a worker was stopped ({cause or 'the cause is unknown'}) and {missing} episodes are not "
            f"finished. Give the same command again to resume; logs are in {job.folder / 'logs'}."
        ) from cause
    return True


def _common(config: JobConfig, logs: Path) -> dict[str, Any]:
    # Our own files mark finished episodes; datatrove's marks would stay if someone deletes one.
    workers = {"tasks": config.workers, "workers": config.workers}
    return {**workers, "logging_dir": str(logs), "skip_completed": False}


def _resources(config: JobConfig) -> dict[str, int]:
    return {
        "cpus_per_task": config.cpus_per_worker,
        "gpus_per_task": config.gpus_per_worker,
        "mem_per_cpu_gb": config.memory_per_cpu,
    }


def _slurm(config: JobConfig, job: Job) -> None:
    """Submit an array of workers and, after it, the job that assembles the dataset."""
    logs = config.output.with_name(config.output.name + ".slurm")
    common = {
        **_resources(config),
        "partition": config.slurm.partition,
        "time": config.slurm.time,
        "qos": config.slurm.qos,
        "env_command": config.slurm.setup or f'export PATH="{Path(sys.executable).parent}:$PATH"',
        "job_name": config.command,
    }
    first = {**_common(config, logs / "episodes"), **common}
    workers = SlurmPipelineExecutor([PrecomputeEpisodes(config)], **first)
    last = {**_common(config, logs / "dataset"), **common, "tasks": 1, "workers": 1, "depends": workers}
    SlurmPipelineExecutor([AssembleDataset(config)], **last).run()


@contextmanager
def _bar(job: Job) -> Iterator[None]:
    """Show a progress bar over episodes, as they appear in the job's folder."""
    total, stop = len(job.source.episodes), threading.Event()

    def watch() -> None:
        with tqdm(total=total, unit="episode") as bar:
            over = False
            while not over:
                over = stop.wait(0.5)
                bar.update(total - len(job.pending()) - bar.n)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
