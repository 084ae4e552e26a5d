# SPDX-License-Identifier: Apache-2.0
"""The scripted expert as a LeRobot teleoperator.

A person at a leader arm hears LeRobot announce "Recording episode 3" and "Reset the environment" and acts on it.
So does the expert: it follows the same announcements in LeRobot's log. While an episode is recorded it works on
the task and holds the result; during the reset it goes home, where the robot lays the table anew (see `robot`),
and waits. Without announcements (`lerobot-teleoperate`) it goes round by itself: work, hold a second, go home.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from lerobot.teleoperators import Teleoperator

from .arm import ACTION_NAMES, FPS
from .robot import SO101Sim, find_robot
from .teleop_config import SO101ExpertConfig

if TYPE_CHECKING:
    from .expert import Disturbance, Expert

_WORK, _RESET = "Recording episode", "Reset the environment"  # what lerobot.utils.utils.log_say announces


class _Listener(logging.Handler):
    """Remembers the last of LeRobot's announcements."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.heard: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        for announcement in (_WORK, _RESET):
            if message.startswith(announcement):
                self.heard = announcement


class SO101Expert(Teleoperator):
    """Scripted demonstrator for the `so101_sim` robot."""

    config_class = SO101ExpertConfig
    name = "so101_expert"

    def __init__(self, config: SO101ExpertConfig) -> None:
        super().__init__(config)
        config.check()
        self.config = config
        self._listener: _Listener | None = None
        self._robot: SO101Sim | None = None
        self._expert: Expert | None = None
        self._disturbance: Disturbance | None = None
        self._rng = np.random.default_rng(config.seed)
        self._start: object | None = None
        self._hold_ticks = 0

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(ACTION_NAMES, float)

    @property
    def feedback_features(self) -> dict[str, type]:
        return {}

    @property
    def is_connected(self) -> bool:
        return self._listener is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        # LeRobot connects the teleoperator before the robot: the robot is looked up at the first action.
        self._listener = _Listener()
        logging.getLogger().addHandler(self._listener)

    def disconnect(self) -> None:
        if self._listener is not None:
            logging.getLogger().removeHandler(self._listener)
            self._listener = self._robot = self._expert = None

    def calibrate(self) -> None:
        """Nothing to calibrate."""

    def configure(self) -> None:
        """Nothing to configure."""

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """A script feels nothing."""

    def get_action(self) -> dict[str, Any]:
        """The expert's command for the robot's present state.

        Raises:
            ConnectionError: not connected, or no `so101_sim` robot of this world is.
        """
        if self._listener is None:
            raise ConnectionError("so101_expert is not connected: call connect() first.")
        robot, expert, disturbance = self._attach()
        decision = expert.decide() if self._should_work(robot) else expert.go_home()
        if self.config.disturbance > 0:
            robot.disturb(disturbance.sample(decision.phase))
        return dict(zip(ACTION_NAMES, decision.action.tolist(), strict=True))

    def _attach(self) -> tuple[SO101Sim, Expert, Disturbance]:
        """Find the robot, once; draw fresh disturbances for every new start."""
        from .expert import Disturbance, Expert

        if self._robot is None or self._expert is None:
            self._robot = find_robot(self.config.world)
            self._expert = Expert(self._robot.world)
        if self._disturbance is None or self._robot.world.start is not self._start:
            self._start, self._hold_ticks = self._robot.world.start, 0
            self._disturbance = Disturbance(self._rng, self.config.disturbance)
        return self._robot, self._expert, self._disturbance

    def _should_work(self, robot: SO101Sim) -> bool:
        heard = self._listener.heard if self._listener else None
        if heard is not None:
            return heard == _WORK
        self._hold_ticks += robot.world.is_success() or self._hold_ticks > 0
        return self._hold_ticks < FPS
