# SPDX-License-Identifier: Apache-2.0
"""`so101-precompute`: compute masks and disparity of a dataset once, instead of at every training step.

The source is left as it is. The new dataset contains the source's data (videos are linked, not copied) and
one column per camera and stored form. The command may be stopped or killed at any time: the same command
resumes, and its result has the same bytes.

    so101-precompute --root=outputs/demos --output=outputs/precomputed --segmenter=workbench --depth=segmenter
"""

import logging
import shutil
import time

import datasets
import transformers

from ..cli import run_command
from ..lock import owning
from ..recording import check_videos
from .assemble import assemble
from .config import JobConfig
from .job import Job, remove_partial
from .perception import PrecomputeConfig
from .work import prepare, run

logger = logging.getLogger(__name__)


def precompute(config: JobConfig) -> str:
    """Create the dataset, and return a summary: frames, their speed, and bytes per frame of each stored form.

    Raises:
        ValueError, FileExistsError, FileNotFoundError: if the input is invalid.
        RuntimeError: if a worker failed.
        OSError: if the disk is full (finished episodes stay), or another process has the same output.
    """
    config.check()
    with owning(config.output):
        if config.output.exists():
            if not config.partial.is_dir():
                raise FileExistsError(
                    f"--output: {config.output} exists already and was left as it is. Choose another folder."
                )
            remove_partial(config.partial)  # a kill came after the output was complete and before this
            return f"{config.output} is complete already."
        job, extractor = prepare(config)
        check_videos(job.source.root)
        job.open()
        _check_space(job)
        frames, start = sum(episode.length for episode in job.pending()), time.monotonic()
        if not run(config, job, extractor):
            return f"submitted to Slurm; {config.output} appears when the last job has finished."
        speed = frames / (time.monotonic() - start)
        cameras = len({column.camera for column in job.columns})
        return f"{frames} frames of {cameras} cameras, {speed:.1f} frames/s; {assemble(job)}"


def _check_space(job: Job) -> None:
    """Log the size of dense logits, and refuse them if the disk has too little space."""
    per_frame = sum(column.logits_bytes for column in job.columns)
    if not per_frame:
        return
    frames = sum(episode.length for episode in job.source.episodes)
    logger.warning("logits: %d frames x %s = %s.", frames, _size(per_frame), _size(frames * per_frame))
    # Parts are deleted as each data file is finished, so the largest of these exists twice for a while.
    largest = max(sum(e.length for e in episodes) for episodes in job.source.data_files().values())
    needed = per_frame * (sum(episode.length for episode in job.pending()) + largest)
    free = shutil.disk_usage(job.folder).free
    if free < needed:
        raise ValueError(
            f"--forms: logits need {_size(needed)}, found {_size(free)} free in {job.folder.parent}. Make "
            "--logits_size smaller, store ids or top_k instead, or free space."
        )


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def run_job(kind: type[JobConfig]) -> None:
    """Run a command of this kind."""
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    stopped = "stopped; the same command resumes."
    run_command(kind.command, kind, precompute, stopped, log="lerobot_processor_so101")


def main() -> None:
    """Run `so101-precompute`."""
    run_job(PrecomputeConfig)


if __name__ == "__main__":
    main()
