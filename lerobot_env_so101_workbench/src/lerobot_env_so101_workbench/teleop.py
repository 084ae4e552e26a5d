# SPDX-License-Identifier: Apache-2.0
"""The scripted expert as a LeRobot teleoperator.

A person with a leader arm follows LeRobot's announcements "Recording episode 3" and "Reset the environment".
The expert follows the same announcements in LeRobot's log: while an episode is recorded it does the task and
holds the result; during the reset it homes the arm, which makes the robot reset the scene, and waits. Without
announcements (`lerobot-teleoperate`) it repeats: do the task, hold for a second, home.
"""

import logging
from typing import Any

import numpy as np
from lerobot.teleoperators import Teleoperator

from lerobot_processor_so101.arm import ACTION_NAMES, FPS

from .device_configs import SO101ExpertConfig
from .robot import SO101Sim, find_robot
from .sim.expert import Disturbance, Expert
from .sim.initial_states import InitialState

_RECORD, _RESET = "Recording episode", "Reset the environment"  # logged by lerobot.utils.utils.log_say


class _AnnouncementHandler(logging.Handler):
    """Stores the last of LeRobot's announcements."""

    last: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        for announcement in (_RECORD, _RESET):
            if record.getMessage().startswith(announcement):
                self.last = announcement


class SO101Expert(Teleoperator):
    """Scripted demonstrator for the `so101_sim` robot."""

    config_class = SO101ExpertConfig
    name = "so101_expert"
    action_features = dict.fromkeys(ACTION_NAMES, float)
    feedback_features: dict[str, type] = {}
    is_calibrated = True

    def __init__(self, config: SO101ExpertConfig) -> None:
        super().__init__(config)
        config.check()
        self.config = config
        self._announcements: _AnnouncementHandler | None = None
        self._robot: SO101Sim | None = None
        self._expert: Expert | None = None
        self._disturbance: Disturbance | None = None
        self._rng = np.random.default_rng(config.seed)
        self._initial_state: InitialState | None = None
        self._hold_ticks = 0

    @property
    def is_connected(self) -> bool:
        return self._announcements is not None

    def connect(self, calibrate: bool = True) -> None:
        # LeRobot connects the teleoperator before the robot: the robot is looked up at the first action.
        self._announcements = _AnnouncementHandler(logging.INFO)
        logging.getLogger().addHandler(self._announcements)

    def disconnect(self) -> None:
        if self._announcements is not None:
            logging.getLogger().removeHandler(self._announcements)
            self._announcements = self._robot = self._expert = None

    def calibrate(self) -> None:
        """Do nothing."""

    def configure(self) -> None:
        """Do nothing."""

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """Ignore feedback."""

    def get_action(self) -> dict[str, Any]:
        """Return the expert's command for the robot's present state.

        Raises:
            ConnectionError: if it is not connected, or no `so101_sim` robot of this world is.
        """
        if self._announcements is None:
            raise ConnectionError("so101_expert is not connected: call connect() first.")
        robot, expert, disturbance = self._attach()
        if self._announcements.last:
            is_working = self._announcements.last == _RECORD
        else:
            self._hold_ticks += robot.world.is_success() or self._hold_ticks > 0
            is_working = self._hold_ticks < FPS
        decision = expert.decide() if is_working else expert.go_home()
        if self.config.disturbance > 0:
            robot.disturb(disturbance.sample(decision))
        return dict(zip(ACTION_NAMES, decision.action.tolist(), strict=True))

    def _attach(self) -> tuple[SO101Sim, Expert, Disturbance]:
        """Find the robot at the first call; start a new disturbance after each reset of the scene."""
        if self._robot is None or self._expert is None:
            self._robot = find_robot(self.config.world)
            self._expert = Expert(self._robot.world)
        state = self._robot.world.initial_state
        if self._disturbance is None or state is not self._initial_state:
            self._initial_state, self._hold_ticks = state, 0
            self._disturbance = Disturbance(self._expert, self._rng, self.config.disturbance)
        return self._robot, self._expert, self._disturbance
