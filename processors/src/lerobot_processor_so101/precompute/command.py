# SPDX-License-Identifier: Apache-2.0
"""`so101-precompute`: add masks and disparity to a dataset, once, instead of at every training step.

The source is left as it is. The new dataset has all that the source has (videos are linked, not copied) and one
column per camera and stored form. It may be stopped at any moment, even by force: the same command goes on where it
was and ends with the same bytes.

    so101-precompute --root=outputs/demos --output=outputs/demos_seen --segmenter=workbench --depth=segmenter
"""

import logging
import shutil
import sys
import time

import datasets
import draccus
import transformers
from draccus.utils import DraccusException

from .assemble import assemble
from .config import JobConfig, PrecomputeConfig
from .executors import run
from .job import Job, explain, remove_leftovers
from .work import prepare

logger = logging.getLogger(__name__)


def precompute(config: JobConfig) -> str:
    """Make the dataset.

    Returns:
        What was done, for people: frames, their speed, and bytes per frame of each stored form.

    Raises:
        ValueError, FileExistsError, FileNotFoundError: bad input.
        RuntimeError: a worker failed.
        OSError: the disk is full; what is finished stays.
    """
    config.check()
    if config.output.exists():
        return _already_there(config)
    job, models = prepare(config)
    job.open()
    _check_room(job)
    frames, start = sum(episode.length for episode in job.pending()), time.monotonic()
    if not run(config, job, models):
        return f"submitted to Slurm; {config.output} appears when the last job is done."
    speed = frames / (time.monotonic() - start)
    cameras = len({column.camera for column in job.columns})
    return f"{frames} frames of {cameras} cameras, {speed:.1f} frames/s; {assemble(job)}"


def _already_there(config: JobConfig) -> str:
    """The output appears only when it is complete, so what lies beside it then is what a kill left over."""
    if not config.partial.is_dir():
        raise FileExistsError(
            f"--output: {config.output} exists already and was left as it is. Choose another folder."
        )
    remove_leftovers(config.partial)
    return f"{config.output} is complete already."


def _check_room(job: Job) -> None:
    """Tell how large dense logits get, and refuse when the disk has not that much room."""
    per_frame = sum(column.logits_bytes for column in job.columns)
    if not per_frame:
        return
    frames = sum(episode.length for episode in job.source.episodes)
    logger.warning("logits: %d frames x %s = %s.", frames, _size(per_frame), _size(frames * per_frame))
    # Parts are freed as each data file is finished, so the largest of these exists twice for a while.
    largest = max(sum(e.length for e in episodes) for episodes in job.source.data_files().values())
    needed = per_frame * (sum(episode.length for episode in job.pending()) + largest)
    free = shutil.disk_usage(job.folder).free
    if free < needed:
        raise ValueError(
            f"--forms: logits need {_size(needed)}, found {_size(free)} free in {job.folder.parent}. Make "
            "--logits_size smaller, store ids or top_k instead, or make room."
        )


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _only_our_own_messages() -> None:
    """Leave the terminal to this command: every model that is loaded would draw a bar."""
    own = logging.getLogger(__package__)
    own.setLevel(logging.INFO)
    own.addHandler(logging.StreamHandler())
    own.propagate = False
    logging.getLogger("lerobot").setLevel(logging.ERROR)
    logging.getLogger().setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()


def run_command(kind: type[JobConfig]) -> None:
    """Parse the command line and do what it says.

    Args:
        kind: of options.
    """
    _only_our_own_messages()
    try:
        print(precompute(draccus.parse(kind)))
    except KeyboardInterrupt:
        _fail(kind, "stopped; the same command goes on where it was.", 130)
    except (OSError, ValueError, RuntimeError, DraccusException) as error:
        _fail(kind, explain(error))


def _fail(kind: type[JobConfig], message: str, code: int = 2) -> None:
    print(f"{kind.command}: {message}", file=sys.stderr)
    raise SystemExit(code)


def main() -> None:
    """The console script."""
    run_command(PrecomputeConfig)


if __name__ == "__main__":
    main()
