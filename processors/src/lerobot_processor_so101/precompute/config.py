# SPDX-License-Identifier: Apache-2.0
"""Options and models of the commands that run models on every frame of a dataset."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from lerobot.utils.constants import HF_LEROBOT_HOME
from lerobot.utils.device_utils import auto_select_torch_device
from torch import Tensor

from ..config_checks import check_choices, check_device, check_smallest
from .columns import Column

EXECUTORS = ("local", "slurm", "ray")


class FeatureExtractor(ABC):
    """The models of one worker; the workers of one machine are spread over its GPUs by their rank.

    `device` and `batch_size` are those of `JobConfig`.
    """

    def __init__(self, device: str, batch_size: int, rank: int) -> None:
        self.device = auto_select_torch_device() if device == "auto" else torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", rank % torch.cuda.device_count())
        self.batch_size = batch_size or (4 if self.device.type == "cpu" else 32)

    @abstractmethod
    def columns(self, image_sizes: Mapping[str, tuple[int, int]]) -> list[Column]:
        """Return the columns to store, for images of sizes (h, w) by camera."""

    @abstractmethod
    def extract(self, images: Mapping[str, Tensor], columns: Sequence[Column]) -> dict[str, Tensor]:
        """Compute the values of one batch of all cameras.

        Args:
            images: (B, 3, H, W) in [0, 1], by camera.
            columns: what to store.

        Returns:
            By key, on the CPU: (B, 1, h, w) int32, logits (B, C, h, w) float16, or vectors (B, D) float32.

        Raises:
            ValueError: if images or model outputs contain NaN.
        """


@dataclass
class SlurmConfig:
    """Options of Slurm.

    Args:
        partition: partition of the workers.
        time: time limit per worker, such as 04:00:00. After a timeout, the same command resumes.
        qos: quality of service; empty for the cluster's default.
        setup: shell command before the work; by default the Python environment of this command is used.
    """

    partition: str = ""
    time: str = ""
    qos: str = ""
    setup: str = ""


@dataclass
class JobConfig(ABC):
    """Options that these commands share.

    Args:
        output: folder of the new dataset; it must not exist.
        root: folder of the source dataset; by default LeRobot's own folder for `repo_id`.
        repo_id: name of the source dataset; only needed without `root`.
        cameras: names of the cameras to process; by default all RGB cameras.
        drop_rgb: leave RGB images out of the new dataset.
        batch_size: frames of each camera per model call; 0 is 4 on a CPU and 32 elsewhere.
        device: cpu, cuda, mps, or auto.
        executor: local, slurm or ray.
        workers: number of processes that share the episodes.
        cpus_per_worker: CPUs per worker that Slurm and Ray reserve.
        gpus_per_worker: GPUs per worker that Slurm and Ray reserve.
        memory_per_cpu: memory per CPU that Slurm and Ray reserve [GB].
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
    def make_extractor(self, rank: int) -> FeatureExtractor:
        """Load the models of worker `rank`.

        Raises:
            ValueError: if a model is unknown or cannot compute what the options request.
        """

    def check(self) -> None:
        """Validate the options.

        Raises:
            ValueError: if an option is invalid; the message names it as on the command line.
        """
        if self.root is None and not self.repo_id:
            raise ValueError("--root: found nothing, expected the folder of the source dataset.")
        if self.output.resolve() == self.source_root.resolve():
            raise ValueError("--output: found the source dataset itself, expected a folder of its own.")
        smallest = {"workers": 1, "cpus_per_worker": 1, "memory_per_cpu": 1}
        check_smallest(self, {**smallest, "batch_size": 0, "gpus_per_worker": 0}, "--")
        check_choices(self, {"executor": EXECUTORS}, "--")
        if self.executor == "local":  # on a cluster, workers run on other machines
            check_device(self.device)
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
