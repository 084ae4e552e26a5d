# SPDX-License-Identifier: Apache-2.0
"""The guard of the real arm in simulation: its clock counts control periods."""

import logging

import numpy as np

from lerobot_processor_so101.arm import FPS
from lerobot_processor_so101.guard import Guard, GuardLimits

logger = logging.getLogger(__package__)


class TickGuard(Guard):
    """A guard that is called once per control period."""

    def __init__(self, limits: GuardLimits) -> None:
        self._ticks = 0
        super().__init__(limits, lambda: self._ticks / FPS)

    def check(self, command: object) -> np.ndarray:
        """Return the command (6,) to execute instead of `command`."""
        self._ticks += 1
        return super().check(command)

    def log_report(self) -> None:
        """Log the commands since the last report in one line, if there were any."""
        if self.counts:
            logger.info("so101 workbench: %s", self.report())
