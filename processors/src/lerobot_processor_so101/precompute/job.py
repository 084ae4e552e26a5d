# SPDX-License-Identifier: Apache-2.0
"""The unfinished work: a folder that remembers what it is for and which episodes are done.

<output>.partial/manifest.json           options, models and source that its contents belong to
<output>.partial/episodes/000000.arrow   the new columns of an episode
<output>.partial/episodes/000000.json    their sums; its presence says that the episode is done
<output>.partial/dataset/                the result, as far as it is put together
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from .columns import Column, Tally, schema
from .config import JobConfig
from .frames import Batch
from .source import Episode, Source


class Job:
    """One run's folder.

    Args:
        config: options of the command.
        source: the dataset that perception is added to.
        columns: what is added.
    """

    def __init__(self, config: JobConfig, source: Source, columns: Sequence[Column]) -> None:
        self.config, self.source, self.columns = config, source, list(columns)
        self.folder = config.partial
        self.dataset = self.folder / "dataset"

    def open(self) -> None:
        """Make the folder, or go on with it. Only while no worker is writing there.

        Raises:
            ValueError: it holds other work, or a key is in the source already.
        """
        self.check()
        (self.folder / "episodes").mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)
        write_json(self.folder / "manifest.json", self._manifest())

    def check(self) -> None:
        """Make sure that what lies in the folder belongs to this run.

        Raises:
            ValueError: it holds other work, or a key is in the source already.
        """
        taken = [column.key for column in self.columns if column.key in self.source.features]
        if taken:
            raise ValueError(
                f"{taken[0]!r} is in {self.source.root} already, expected a dataset without it. Leave that camera or "
                "form out."
            )
        path, wanted = self.folder / "manifest.json", self._manifest()
        found = json.loads(path.read_text()) if path.is_file() else wanted
        for key in wanted:
            if found[key] != wanted[key]:
                raise ValueError(
                    f"--output: the unfinished work in {self.folder} was made with {_differ(key, found, wanted)}. "
                    "Give the same options again to go on, or delete that folder to begin anew."
                )

    def pending(self) -> list[Episode]:
        """Episodes that are not done."""
        return [episode for episode in self.source.episodes if not self.part(episode, "json").is_file()]

    def part(self, episode: Episode, suffix: str) -> Path:
        """File of one episode."""
        return self.folder / "episodes" / f"{episode.index:06d}.{suffix}"

    def tallies(self) -> dict[str, Tally]:
        """Sums over all episodes that are done, by key."""
        totals = {column.key: Tally() for column in self.columns}
        for path in sorted((self.folder / "episodes").glob("*.json")):
            for key, values in json.loads(path.read_text()).items():
                totals[key].merge(Tally(values))
        return totals

    def _manifest(self) -> dict[str, Any]:
        return {
            "source": self.source.fingerprint(),
            "features": {column.key: column.feature() for column in self.columns},
            "drop_rgb": self.config.drop_rgb,
        }


class PartWriter:
    """Writes the columns of one episode batch by batch; they count only once they are complete.

    Args:
        job: the run.
        episode: the episode.
    """

    def __init__(self, job: Job, episode: Episode) -> None:
        self.job, self.episode = job, episode
        self.tallies = {column.key: Tally() for column in job.columns}
        self.schema = schema(job.columns)
        self.temporary = self._path()
        self.file = pa.OSFile(str(self.temporary), "wb")
        self.writer = pa.ipc.new_file(self.file, self.schema)

    def write(self, batch: Batch, values: dict[str, Any]) -> None:
        """Add the stored values of one batch, by key."""
        arrays = []
        for column in self.job.columns:
            encoded = column.encode(values[column.key])
            self.tallies[column.key].add(values[column.key], encoded)
            arrays.append(encoded)
        self.writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
        if batch.last:
            self._finish()

    def _path(self) -> Path:
        return self.job.part(self.episode, f"{os.getpid()}.tmp")

    def _finish(self) -> None:
        self.writer.close()
        self.file.close()
        settle(self.temporary, self.job.part(self.episode, "arrow"))
        sums = {key: tally.to_dict() for key, tally in self.tallies.items()}
        write_json(self.job.part(self.episode, "json"), sums)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; the file appears under its own only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(temporary: Path, path: Path) -> None:
    """Give a finished file its name, once its bytes are on the disk."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, values: Any) -> None:
    """Write JSON as LeRobot formats it, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=4, ensure_ascii=False))


def report_failure(partial: Path, rank: int, error: Exception) -> None:
    """Leave a worker's error where the command finds it, whoever started the worker."""
    with suppress(OSError):  # the disk may be full
        (partial / f"failed-{rank:05d}.txt").write_text(f"{explain(error)}\n")


def failures(partial: Path) -> list[Path]:
    """What workers have reported."""
    return sorted(partial.glob("failed-*.txt"))


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for path in folder.rglob("*.tmp"):
        path.unlink()


def explain(error: Exception) -> str:
    """An error in one line, with the way on."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error}). Finished episodes are kept: make room and give the same command again."
    return str(error)


def remove_leftovers(partial: Path) -> None:
    """Remove the work of a result that is complete; the manifest goes last, so that this can be interrupted."""
    manifest = partial / "manifest.json"
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != manifest:
            path.unlink()
    manifest.unlink(missing_ok=True)
    partial.rmdir()


def _differ(key: str, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Name the first difference of two manifests."""
    if key == "source":
        return "another source, or the source has changed since"
    if key != "features":
        return f"--{key}={str(found[key]).lower()}"
    for name in found[key]:
        if name not in wanted[key]:
            return f"{name!r}, which is not asked for now"
        if found[key][name] != wanted[key][name]:
            return f"another size, form or model for {name!r}"
    return f"no {next(name for name in wanted[key] if name not in found[key])!r}, which is asked for now"
