# SPDX-License-Identifier: Apache-2.0
"""The folder of the unfinished work, from which an interrupted command resumes.

<output>.partial/manifest.json           options, models and source that the folder belongs to
<output>.partial/episodes/000000.arrow   new columns of an episode
<output>.partial/episodes/000000.json    their sums; written last, so an episode with this file is finished
<output>.partial/dataset/                the result, as far as it is assembled
"""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..atomic import replace_synced, write_json
from ..cli import describe_error
from .columns import Column, Tally, schema
from .config import JobConfig
from .frames import Batch
from .source import Episode, Source


class Job:
    """The folder of one run, which adds columns to a source dataset."""

    def __init__(self, config: JobConfig, source: Source, columns: Sequence[Column]) -> None:
        self.config, self.source, self.columns = config, source, list(columns)
        self.folder = config.partial
        self.dataset = self.folder / "dataset"
        self.dropped = source.rgb_keys if config.drop_rgb else []

    def open(self) -> None:
        """Create the folder, or resume from it, after `check`; only while no worker writes to it."""
        self.check()
        (self.folder / "episodes").mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)
        write_json(self.folder / "manifest.json", self._manifest())

    def check(self) -> None:
        """Check that the folder belongs to this run.

        Raises:
            ValueError: if it belongs to other work, or the source has a column's key already.
        """
        taken = [column.key for column in self.columns if column.key in self.source.features]
        if taken:
            raise ValueError(
                f"{taken[0]!r} is in {self.source.root} already, expected a dataset without it. Leave that "
                "camera or form out."
            )
        path, expected = self.folder / "manifest.json", self._manifest()
        found = json.loads(path.read_text()) if path.is_file() else expected
        for key in expected:
            if found[key] != expected[key]:
                raise ValueError(
                    f"--output: the unfinished work in {self.folder} was made with "
                    f"{_differ(key, found, expected)}. Give the same options again to resume, or delete that "
                    "folder to start over."
                )

    def pending(self) -> list[Episode]:
        """Return the unfinished episodes."""
        return [episode for episode in self.source.episodes if not self.part(episode, "json").is_file()]

    def part(self, episode: Episode, suffix: str) -> Path:
        """Return the path of an episode's file."""
        return self.folder / "episodes" / f"{episode.index:06d}.{suffix}"

    def tallies(self) -> dict[str, Tally]:
        """Return the sums over all finished episodes, by key."""
        totals = {column.key: Tally() for column in self.columns}
        for path in sorted((self.folder / "episodes").glob("*.json")):
            for key, values in json.loads(path.read_text()).items():
                totals[key].merge(Tally(**values))
        return totals

    def _manifest(self) -> dict[str, Any]:
        features = json.loads(json.dumps({column.key: column.feature() for column in self.columns}))
        drop_rgb = self.config.drop_rgb
        return {"source": self.source.fingerprint(), "features": features, "drop_rgb": drop_rgb}


class PartWriter:
    """Write the columns of one episode batch by batch; with its last batch the episode is finished."""

    def __init__(self, job: Job, episode: Episode) -> None:
        self.job, self.episode = job, episode
        self.tallies = {column.key: Tally() for column in job.columns}
        self.schema = schema(job.columns)
        self.temporary = self._temporary()
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
        if batch.start + batch.length == self.episode.length:
            self.writer.close()
            self.file.close()
            replace_synced(self.temporary, self.job.part(self.episode, "arrow"))
            sums = {key: vars(tally) for key, tally in self.tallies.items()}
            write_json(self.job.part(self.episode, "json"), sums)

    def _temporary(self) -> Path:
        return self.job.part(self.episode, f"{os.getpid()}.tmp")


def report_failure(partial: Path, rank: int, error: Exception) -> None:
    """Write a worker's error to a file that the command reads, on whatever machine the worker runs."""
    with suppress(OSError):  # the disk may be full
        (partial / f"failed-{rank:05d}.txt").write_text(f"{describe_error(error)}\n")


def failures(partial: Path) -> list[Path]:
    """Return the files with the errors of workers."""
    return sorted(partial.glob("failed-*.txt"))


def remove_temporaries(folder: Path) -> None:
    """Remove the incomplete files of a killed process."""
    for path in folder.rglob("*.tmp"):
        path.unlink()


def remove_partial(partial: Path) -> None:
    """Remove the folder of finished work; the manifest last, so that this can be interrupted and repeated."""
    manifest = partial / "manifest.json"
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != manifest:
            path.unlink()
    manifest.unlink(missing_ok=True)
    partial.rmdir()


def _differ(key: str, found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Describe the first difference of two manifests."""
    if key == "source":
        return "another source, or the source has changed since"
    if key != "features":
        return f"--{key}={str(found[key]).lower()}"
    for name in found[key]:
        if name not in expected[key]:
            return f"{name!r}, which is not requested now"
        if found[key][name] != expected[key][name]:
            return f"another size, form or model for {name!r}"
    return f"no {next(name for name in expected[key] if name not in found[key])!r}, which is requested now"
