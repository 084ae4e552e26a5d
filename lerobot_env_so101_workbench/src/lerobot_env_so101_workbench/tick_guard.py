# SPDX-License-Identifier: Apache-2.0
"""The guard of the real arm in the simulator: what would a policy do if it were held to the limits there?"""

from __future__ import annotations

import numpy as np

from lerobot_processor_so101.guard import Guard, GuardLimits

from .arm import FPS


class TickGuard:
    """A guard whose clock is the world's control period.

    Args:
        limits: of commands.
    """

    def __init__(self, limits: GuardLimits) -> None:
        self._ticks = 0
        self._guard = Guard(limits, lambda: self._ticks / FPS)

    def stand(self, joints: np.ndarray) -> None:
        """Begin where the arm stands, (6,) in LeRobot units."""
        self._guard.stand(joints)

    def check(self, action: np.ndarray) -> np.ndarray:
        """What the arm is told instead, (6,)."""
        self._ticks += 1
        return self._guard.check(action)

    def report(self) -> str:
        """One line on what was done since the last report; empty if nothing was asked."""
        return self._guard.report() if self._guard.counts else ""
