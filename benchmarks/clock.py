# SPDX-License-Identifier: Apache-2.0
"""Where the time of a control period goes, and how much memory it took."""

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class Clock:
    """Milliseconds of the phases of each tick.

    Args:
        phases: inside "total", none inside another. What is in no phase is "rest".
    """

    def __init__(self, *phases: str) -> None:
        self.phases = phases
        self.ticks: list[dict[str, float]] = []
        self.now: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what happens inside to a phase."""
        begin = time.perf_counter()
        yield
        self.now[name] += (time.perf_counter() - begin) * 1000

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls are added to a phase."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def tick(self) -> None:
        """A control period is over."""
        self.now["rest"] = self.now["total"] - sum(self.now[name] for name in self.phases)
        self.ticks.append(dict(self.now))
        self.now.clear()

    def summary(self, skip: int = 0) -> dict[str, dict[str, float]]:
        """Median and 95th percentile of every phase, without the first ticks."""
        names = (*self.phases, "rest", "total")
        columns = {name: [tick.get(name, 0.0) for tick in self.ticks[skip:]] for name in names}
        return {name: percentiles(values) for name, values in columns.items()}


def percentiles(
    values: Sequence[float], shares: Sequence[int] = (50, 95), digits: int = 2
) -> dict[str, float]:
    """Median and 95th percentile, or others."""
    return {f"p{q}": round(float(np.percentile(values, q)), digits) for q in shares}


def peak_memory(device: str) -> float:
    """Megabytes that this process, or its GPU, has needed at most. Linux lets a process begin with the peak of its parent."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
