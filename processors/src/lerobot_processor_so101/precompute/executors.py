# SPDX-License-Identifier: Apache-2.0
"""Run the work in one or several processes, on Slurm or on Ray, with datatrove's executors."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from tqdm import tqdm

from .config import JobConfig
from .extractor import FeatureExtractor
from .job import Job, failures
from .work import AssembleDataset, PrecomputeEpisodes, work


def run(config: JobConfig, job: Job, extractor: FeatureExtractor) -> bool:
    """Process all unfinished episodes.

    Returns:
        Whether they are finished; False if Slurm processes them later, and assembles the dataset too.

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
    if config.executor == "ray":
        executor = _ray(config, job)
    else:
        # Imports take seconds: one process imports, and workers are forked from it.
        multiprocess.get_context("forkserver").set_forkserver_preload([PrecomputeEpisodes.__module__])
        executor = LocalPipelineExecutor([PrecomputeEpisodes(config)], **_common(config, job.folder / "logs"))
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


def _ray(config: JobConfig, job: Job) -> RayPipelineExecutor:
    import ray

    if not ray.is_initialized():  # joins the cluster of RAY_ADDRESS, or starts one on this machine
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    return RayPipelineExecutor(
        [PrecomputeEpisodes(config)], **_common(config, job.folder / "logs"), **_resources(config)
    )


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
    workers = SlurmPipelineExecutor(
        [PrecomputeEpisodes(config)], **{**_common(config, logs / "episodes"), **common}
    )
    last = {**_common(config, logs / "dataset"), **common, "tasks": 1, "workers": 1, "depends": workers}
    SlurmPipelineExecutor([AssembleDataset(config)], **last).run()


@contextmanager
def _bar(job: Job) -> Iterator[None]:
    """Show a progress bar over episodes, as they appear in the job's folder."""
    total, stop = len(job.source.episodes), threading.Event()

    def watch() -> None:
        with tqdm(total=total, unit="episode") as bar:
            while True:
                over = stop.wait(0.5)
                if finished := total - len(job.pending()) - bar.n:
                    bar.update(finished)
                if over:
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
