# SPDX-License-Identifier: Apache-2.0
"""Options of `so101-precompute`, and of other commands that look at every frame of a dataset once."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from lerobot.utils.constants import HF_LEROBOT_HOME

from ..checks import check_choices
from .models import Models

FORMS = ("ids", "top_k", "logits")
EXECUTORS = ("local", "slurm", "ray")
FROM_SEGMENTER = "segmenter"


@dataclass
class SlurmConfig:
    """What Slurm has to know.

    Args:
        partition: where to run.
        time: limit per worker, such as 04:00:00. A worker that is cut off is continued by the same command.
        qos: quality of service; empty leaves it to the cluster.
        setup: shell command before the work; by default the Python environment of this command is used.
    """

    partition: str = ""
    time: str = ""
    qos: str = ""
    setup: str = ""


@dataclass
class JobConfig(ABC):
    """What every such command is told.

    Args:
        output: folder of the new dataset; it must not exist.
        root: folder of the source dataset; by default LeRobot's own place for `repo_id`.
        repo_id: name of the source dataset; only needed without `root`.
        cameras: names of the cameras to look at; by default all that have colours.
        drop_rgb: leave colours out of the new dataset.
        batch_size: frames of each camera per call of a model; 0 is 4 on a CPU and 32 elsewhere.
        device: cpu, cuda, mps, or auto.
        executor: local, slurm or ray.
        workers: how many processes share the episodes.
        cpus_per_worker, gpus_per_worker, memory_per_cpu: what Slurm and Ray reserve [memory in GB].
        slurm: options of Slurm.
    """

    command: ClassVar[str]

    output: Path
    root: Path | None = None
    repo_id: str | None = None
    cameras: list[str] = field(default_factory=list)
    drop_rgb: bool = False
    batch_size: int = 0
    device: str = "auto"
    executor: str = "local"
    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: int = 0
    memory_per_cpu: int = 4
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    @abstractmethod
    def make_models(self, rank: int) -> Models:
        """Load what looks.

        Args:
            rank: number of this worker; several workers on one machine take turns at its GPUs.

        Raises:
            ValueError: a model that is unknown or cannot give what was asked for.
        """

    def check(self) -> None:
        """Say what cannot be, in the words of the command line.

        Raises:
            ValueError: an option that does not work.
        """
        if self.root is None and not self.repo_id:
            raise ValueError("--root: found nothing, expected the folder of the source dataset.")
        if self.output.resolve() == self.source_root.resolve():
            raise ValueError("--output: found the source dataset itself, expected a folder of its own.")
        check_numbers(self, ("workers", "cpus_per_worker", "memory_per_cpu"), least=1)
        check_numbers(self, ("batch_size", "gpus_per_worker"), least=0)
        check_choices(self, {"executor": EXECUTORS}, "--")
        if self.executor == "ray" and not find_spec("ray"):
            raise ValueError("--executor=ray: Ray is not installed; `pip install ray`.")
        if self.executor == "slurm" and not (self.slurm.partition and self.slurm.time):
            raise ValueError(
                f"--executor=slurm: found --slurm.partition={self.slurm.partition!r} and "
                f"--slurm.time={self.slurm.time!r}, expected both."
            )

    @property
    def source_root(self) -> Path:
        """Folder of the source dataset."""
        return self.root if self.root is not None else HF_LEROBOT_HOME / str(self.repo_id)

    @property
    def partial(self) -> Path:
        """Folder of the unfinished work, beside the output."""
        return self.output.with_name(self.output.name + ".partial")


@dataclass
class PrecomputeConfig(JobConfig):
    """Options of `so101-precompute`; see also `JobConfig`.

    Args:
        segmenter: name of a segmenter, such as "workbench", a folder or a Hub id.
        classes: what an open-vocabulary segmenter is to look for.
        forms: what to store of its scores: ids, top_k, logits.
        depth: name of a depth model, or "segmenter" for the segmenter's own disparity.
        height, width: size of ids and disparity [pixels].
        whole_disparity: cut off the fractions of disparity, as bytes do; for policies with that option.
        top_k, grid: how many classes top_k keeps, on grid x grid patches.
        logits_size: side of the square logits [pixels].
    """

    command: ClassVar[str] = "so101-precompute"

    segmenter: str | None = None
    classes: list[str] = field(default_factory=list)
    forms: list[str] = field(default_factory=lambda: ["ids"])
    depth: str | None = None
    height: int = 84
    width: int = 84
    whole_disparity: bool = False
    top_k: int = 10
    grid: int = 32
    logits_size: int = 512

    def make_models(self, rank: int) -> Models:
        """Load the segmenter, the depth model, or both; see `JobConfig.make_models`."""
        from .perception import PerceptionModels

        return PerceptionModels(self, rank)

    def check(self) -> None:
        """Say what cannot be, in the words of the command line.

        Raises:
            ValueError: an option that does not work.
        """
        super().check()
        if not self.segmenter and not self.depth:
            raise ValueError("found neither --segmenter nor --depth, expected at least one of them.")
        if not self.segmenter and (self.classes or self.depth == FROM_SEGMENTER):
            raise ValueError("--classes and --depth=segmenter need a --segmenter, found none.")
        unknown = [form for form in self.forms if form not in FORMS]
        if unknown or len(set(self.forms)) < len(self.forms):
            raise ValueError(f"--forms: found {self.forms}, expected different ones of {list(FORMS)}.")
        if self.segmenter and not self.forms and self.depth != FROM_SEGMENTER:
            raise ValueError("--forms: found none, expected one unless only --depth=segmenter is wanted.")
        check_numbers(self, ("height", "width", "top_k", "grid", "logits_size"), least=1)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of ids and disparity."""
        return self.height, self.width


def check_numbers(config: JobConfig, names: Sequence[str], least: int) -> None:
    """Refuse options that are too small.

    Raises:
        ValueError: one is; the message names it.
    """
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"--{name}: found {getattr(config, name)}, expected {least} or more.")
