# SPDX-License-Identifier: Apache-2.0
"""Run episodes in several processes."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch

_AHEAD = 2  # episodes that a process is asked for at a time: one is sent while the next one runs


class EpisodeSource(Protocol):
    """Where episodes come from.

    Attributes:
        identity: options that all episodes of a dataset share, besides its features.
        first_seed: is added to the seeds that a user gives.
        is_needed: false if the policy succeeded by itself in the last episode.
    """

    identity: dict[str, Any]
    first_seed: int
    is_needed: bool

    @property
    def succeeded(self) -> bool:
        """Whether the expert succeeded in the last episode."""

    def episode(self, seed: int) -> Iterator[dict]:
        """Run an episode and yield its frames; the attributes are those of this episode afterwards."""

    def close(self) -> None: ...


class Workers:
    """Runs episodes in processes, which end with this one, even if it is killed.

    The episodes are those of the source, in the same order; of one that is not kept there are no frames.

    Args:
        open_source: is called in each process; a function of a module, or a partial of one.
        n: number of processes.
        source: the same in this process.
    """

    def __init__(self, open_source: Callable[[], EpisodeSource], n: int, source: EpisodeSource) -> None:
        self.identity, self.first_seed = source.identity, source.first_seed
        self.is_needed = self.succeeded = False
        self._next: int | None = None
        self._workers: list[tuple[Connection, BaseProcess]] = []
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([f"{__package__}.command"])  # imported once for all
        for _ in range(n):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(open_source, there), daemon=True)
            process.start()
            there.close()  # so that reading from a process that has died fails
            self._workers.append((here, process))

    def episode(self, seed: int) -> Iterator[dict]:
        """Yield the frames of an episode; each call asks for the seed after the last one's.

        Raises:
            RuntimeError: if a process has died.
            Exception: what the episode raised.
        """
        n = len(self._workers)
        pipe, process = self._workers[seed % n]
        try:
            for ahead in range(seed if self._next is None else self._next, seed + _AHEAD * n):
                self._workers[ahead % n][0].send(ahead)
            self._next = seed + _AHEAD * n
            result = pipe.recv()
        except (EOFError, ConnectionError):
            process.join()
            raise RuntimeError(
                f"--workers: a process ended with exit code {process.exitcode}; -9 means that it was killed, "
                "mostly for want of memory. Finished episodes stay; record with fewer workers."
            ) from None
        if isinstance(result, Exception):
            raise result
        frames, self.is_needed, self.succeeded = result
        yield from frames

    def close(self) -> None:
        for _, process in self._workers:
            process.terminate()
        for _, process in self._workers:
            process.join()


def _work(open_source: Callable[[], EpisodeSource], pipe: Connection) -> None:
    """Run the episodes that are asked for, until the other process closes the pipe or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the other one decides
    torch.set_num_threads(1)  # the processes share the cores
    with closing(open_source()) as source, suppress(EOFError, ConnectionError):
        while True:
            pipe.send(_run(source, pipe.recv()))


def _run(source: EpisodeSource, seed: int) -> tuple[list[dict], bool, bool] | Exception:
    try:
        frames = list(source.episode(seed))
    except Exception as error:
        return error
    kept = source.is_needed and source.succeeded
    return frames if kept else [], source.is_needed, source.succeeded
