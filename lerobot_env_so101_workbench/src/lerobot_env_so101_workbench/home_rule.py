# SPDX-License-Identifier: Apache-2.0
"""When the table is laid anew: the arm has been away from its ready pose and is home again.

"Away" is any body joint more than 15 deg from the ready pose, "home" is all of them within 3 deg for a third of a
second.
"""

import numpy as np

from .arm import GRIPPER, HOME

_AWAY, _AT_HOME, _HOME_TICKS = 15.0, 3.0, 10  # deg, deg, ticks of 1/30 s


class HomeRule:
    """Watches an arm and tells when it has come home."""

    def __init__(self) -> None:
        self._was_away, self._home_ticks = False, 0

    def came_home(self, joints: np.ndarray) -> bool:
        """Look at the arm's joints (6,) in LeRobot units, once per tick; True once for every return."""
        away = float(np.abs(joints - HOME)[:GRIPPER].max())
        self._was_away |= away > _AWAY
        self._home_ticks = self._home_ticks + 1 if away < _AT_HOME else 0
        if not (self._was_away and self._home_ticks >= _HOME_TICKS):
            return False
        self._was_away = False
        return True
