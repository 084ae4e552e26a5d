# SPDX-License-Identifier: Apache-2.0
"""The frames that a policy keeps for its frame stack."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from .deferred import PERCEPTION, resolve_all, resolve_perception


class FrameHistory:
    """Observations of the last control periods, for stacks of `frames`, `period` control periods apart.

    Perception models process the frames of the stack, each once, and no others.
    """

    def __init__(self, frames: int, period: int) -> None:
        self.frames, self.period = frames, period
        self._ticks: deque[dict[str, Any]] = deque(maxlen=(frames - 1) * period + 1)

    def clear(self) -> None:
        """Remove all frames, at the start of an episode."""
        self._ticks.clear()

    def push(self, batch: dict[str, Any]) -> None:
        """Add the preprocessor's output of one control period."""
        self._ticks.append(batch)

    def stack(self) -> dict[str, Any]:
        """Return the current stack: observations (B, T, …), oldest first; (B, …) if the stack is one frame.

        At the start of an episode the first frame fills the missing ones, as LeRobot pads a dataset.
        """
        if self.frames == 1:
            return resolve_perception(self._ticks[-1])
        now = len(self._ticks) - 1
        picked = [self._ticks[max(now - age * self.period, 0)] for age in reversed(range(self.frames))]
        if PERCEPTION in picked[-1]:
            resolved = resolve_all([batch[PERCEPTION] for batch in picked])
            picked = [{**batch, **features} for batch, features in zip(picked, resolved, strict=True)]
        last = picked[-1]
        stacked = {
            key: torch.stack([batch[key] for batch in picked], 1)
            for key, value in last.items()
            if key.startswith("observation.") and isinstance(value, Tensor)
        }
        return {**{key: value for key, value in last.items() if key != PERCEPTION}, **stacked}
