# SPDX-License-Identifier: Apache-2.0
"""Time per phase of a control period, and peak memory."""

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch


class Clock:
    """Milliseconds of the phases of each tick: inside "total", none inside another, others are "rest"."""

    def __init__(self, *phases: str) -> None:
        self.phases = phases
        self.ticks: list[dict[str, float]] = []
        self.now: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside to a phase."""
        begin = time.perf_counter()
        yield
        self.now[name] += (time.perf_counter() - begin) * 1000

    def watch(self, name: str, owner: Any, method: str = "forward") -> None:
        """Add the time of an object's method to a phase, from now on."""
        setattr(owner, method, self.phase(name)(getattr(owner, method)))

    def tick(self) -> None:
        """End a control period."""
        self.now["rest"] = self.now["total"] - sum(self.now[name] for name in self.phases)
        self.ticks.append(dict(self.now))
        self.now.clear()

    def summary(self, skip: int = 0) -> dict[str, dict[str, float]]:
        """Return median and 95th percentile of every phase, without the first ticks."""
        names = (*self.phases, "rest", "total")
        return {name: percentiles([tick.get(name, 0.0) for tick in self.ticks[skip:]]) for name in names}


def percentiles(values: Any, shares: Sequence[int] = (50, 95), digits: int = 2) -> dict[str, float]:
    """Return the median and the 95th percentile, or others."""
    return {f"p{q}": round(float(np.percentile(values, q)), digits) for q in shares}


def take_turns[K, R](cases: Iterable[K], rounds: int, run: Callable[[K], R]) -> dict[K, list[R]]:
    """Return the results of every case, one per round: all are exposed to whatever else the machine does."""
    found: dict[K, list[R]] = {case: [] for case in cases}
    for _, case in product(range(rounds), found):
        found[case].append(run(case))
    return found


def in_turn[K](works: dict[K, Callable[[], Any]], rounds: int) -> dict[K, list[float]]:
    """Return the milliseconds of some works, in so many rounds after one to warm up."""

    def timed(name: K) -> float:
        begin = time.perf_counter()
        works[name]()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - begin)

    return {name: times[1:] for name, times in take_turns(works, rounds + 1, timed).items()}


def peak_memory(device: str) -> float:
    """Return the peak memory of this process, or on its GPU, in megabytes.

    On Linux a process begins with the peak of its parent.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
