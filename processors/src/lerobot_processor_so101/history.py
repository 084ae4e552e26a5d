# SPDX-License-Identifier: Apache-2.0
"""The frames a policy remembers between its looks."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from .deferred import PERCEPTION, resolve_all, resolve_perception


class FrameHistory:
    """The observations of the last control periods, of which some are seen together.

    Models look at those that are seen, each once, and at no others.

    Args:
        frames: how many are seen together.
        period: control periods between them.
    """

    def __init__(self, frames: int, period: int) -> None:
        self.frames, self.period = frames, period
        self._ticks: deque[dict[str, Any]] = deque(maxlen=(frames - 1) * period + 1)

    def clear(self) -> None:
        """Forget all; an episode begins."""
        self._ticks.clear()

    def push(self, batch: dict[str, Any]) -> None:
        """Remember what the preprocessor gives at a control period."""
        self._ticks.append(batch)

    def stack(self) -> dict[str, Any]:
        """The frames that are seen now, every observation (B, T, …), oldest first; (B, …) where one is seen.

        Before there are enough, the first frame stands for those that are missing, as LeRobot pads a dataset.
        """
        if self.frames == 1:
            return resolve_perception(self._ticks[-1])
        now = len(self._ticks) - 1
        picked = [self._ticks[max(now - age * self.period, 0)] for age in reversed(range(self.frames))]
        if PERCEPTION in picked[-1]:
            seen = resolve_all([batch[PERCEPTION] for batch in picked])
            picked = [{**batch, **features} for batch, features in zip(picked, seen, strict=True)]
        last = picked[-1]
        keys = [
            key for key, value in last.items() if key.startswith("observation.") and isinstance(value, Tensor)
        ]
        stacked = {key: torch.stack([batch[key] for batch in picked], 1) for key in keys}
        return {**{key: value for key, value in last.items() if key != PERCEPTION}, **stacked}
