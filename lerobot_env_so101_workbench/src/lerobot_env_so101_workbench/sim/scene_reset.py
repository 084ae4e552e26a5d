# SPDX-License-Identifier: Apache-2.0
"""Resets the scene for LeRobot's commands, which never reset a robot between episodes.

The scene is due for a reset when the arm has been away from its ready pose (a body joint more than 15 deg)
and has returned (all within 3 deg for a third of a second). Each reset takes the next training seed.
"""

import numpy as np

from lerobot_processor_so101.arm import GRIPPER, HOME

from ..tasks import TASKS
from .initial_states import InitialState, training_initial_state

_AWAY, _HOME, _HOME_TICKS = 15.0, 3.0, 10  # deg, deg, ticks of 1/30 s


class SceneReset:
    """Decides when to reset the scene, and draws its initial states.

    Args:
        seed: of the first initial state.
        instruction: use only initial states with this instruction; empty for all.

    Attributes:
        seed: of the present initial state.
    """

    def __init__(self, task: str, level: str, seed: int, instruction: str = "") -> None:
        self._task, self._level, self._instruction, self.seed = task, level, instruction, seed
        self._was_away, self._home_ticks = False, 0

    def is_due(self, joints: np.ndarray) -> bool:
        """Update with joints (6,) in LeRobot's units once per tick; return True once per return to HOME."""
        distance = float(np.abs(joints - HOME)[:GRIPPER].max())
        self._was_away |= distance > _AWAY
        self._home_ticks = self._home_ticks + 1 if distance < _HOME else 0
        is_due = self._was_away and self._home_ticks >= _HOME_TICKS
        self._was_away &= not is_due
        return is_due

    def present(self) -> InitialState:
        """Draw the initial state of the present seed, or of the next seed with the instruction asked for.

        Raises:
            ValueError: if the task never gives this instruction.
        """
        found = set()
        for seed in range(self.seed, self.seed + 1000):
            state = training_initial_state(self._task, self._level, seed)
            instruction = TASKS[self._task].instruction(state.goal)
            if self._instruction in ("", instruction):
                self.seed = seed
                return state
            found.add(instruction)
        expected = f"expected one of {sorted(found)} for the task {self._task}"
        raise ValueError(f"--robot.instruction: found {self._instruction!r}, {expected}.")

    def next(self) -> InitialState:
        """Draw the initial state of the next seed."""
        self.seed += 1
        return self.present()
