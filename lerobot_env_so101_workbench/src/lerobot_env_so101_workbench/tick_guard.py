# SPDX-License-Identifier: Apache-2.0
"""The guard of the real arm in simulation: its clock counts control periods."""

from __future__ import annotations

import numpy as np

from lerobot_processor_so101.arm import FPS
from lerobot_processor_so101.guard import Guard, GuardLimits


class TickGuard:
    """A guard that is called once per control period.

    Args:
        limits: of commands.
    """

    def __init__(self, limits: GuardLimits) -> None:
        self._ticks = 0
        self._guard = Guard(limits, lambda: self._ticks / FPS)

    def initialise(self, joints: np.ndarray) -> None:
        """Start at joint positions (6,) in LeRobot's units."""
        self._guard.initialise(joints)

    def check(self, action: np.ndarray) -> np.ndarray:
        """Return the command (6,) to execute instead of `action`."""
        self._ticks += 1
        return self._guard.check(action)

    def report(self) -> str:
        """Summarise the commands since the last report in one line; empty if there were none."""
        return self._guard.report() if self._guard.counts else ""
