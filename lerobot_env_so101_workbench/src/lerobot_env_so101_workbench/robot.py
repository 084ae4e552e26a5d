# SPDX-License-Identifier: Apache-2.0
"""The simulated arm as a LeRobot robot: what `so101_follower` is to a real one.

LeRobot's commands never reset a robot between episodes, so the world follows one rule that a person can also see:
**when the arm has been away and is home again, the table is laid anew** (`home_rule`). It holds for the scripted expert,
which goes home when told to, for `lerobot-rollout`, which returns home after an episode, and for a person with a
leader arm.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from lerobot.robots import Robot

from .arm import ACTION_NAMES, FPS
from .home_rule import HomeRule
from .robot_config import SO101SimConfig
from .tick_guard import TickGuard

if TYPE_CHECKING:
    from .start import Start
    from .world import World

logger = logging.getLogger(__name__)

_robots: dict[str, SO101Sim] = {}


def find_robot(world: str) -> SO101Sim:
    """The connected robot of this name in this process.

    Raises:
        ConnectionError: there is none.
    """
    if world not in _robots:
        raise ConnectionError(
            f"so101_expert: no so101_sim robot is connected as world {world!r} (found: {sorted(_robots) or 'none'}). "
            "Use --robot.type=so101_sim in the same command, with --robot.world equal to --teleop.world."
        )
    return _robots[world]


class SO101Sim(Robot):
    """Simulated SO-101 follower; every action advances the world by one control period of 1/30 s."""

    config_class = SO101SimConfig
    name = "so101_sim"

    def __init__(self, config: SO101SimConfig) -> None:
        super().__init__(config)
        config.check()
        self.config = config
        self._view = config.view()
        self.cameras = dict.fromkeys(self._view.shapes(), self._view)
        self._world: World | None = None
        self._guard = TickGuard(config.limits) if config.guarded else None
        self._seed, self._home_rule = config.seed, HomeRule()
        self._was_success = False
        self._disturbance: np.ndarray | None = None

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        return {**dict.fromkeys(ACTION_NAMES, float), **self._view.shapes()}

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(ACTION_NAMES, float)

    @property
    def is_connected(self) -> bool:
        return self._world is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    @property
    def world(self) -> World:
        """The simulated world.

        Raises:
            ConnectionError: the robot is not connected.
        """
        if self._world is None:
            raise ConnectionError("so101_sim is not connected: call connect() first.")
        return self._world

    def connect(self, calibrate: bool = True) -> None:
        from .world import World

        if self.config.world in _robots:
            raise ConnectionError(
                f"so101_sim: world {self.config.world!r} is in use; choose another --robot.world."
            )
        start = self._start()
        self._world = World(self.config.task, self.config.level, self.config.renderer, self.config.shadows)
        self._reset(start)
        _robots[self.config.world] = self

    def disconnect(self) -> None:
        if self._world is not None:
            if self._guard is not None and (told := self._guard.report()):
                logger.info("so101 workbench: %s", told)
            self._world.close()
            self._world = None
            _robots.pop(self.config.world, None)

    def calibrate(self) -> None:
        """Nothing to calibrate: encoders are exact."""

    def configure(self) -> None:
        """Nothing to configure."""

    def get_observation(self) -> dict[str, Any]:
        joints = dict(zip(ACTION_NAMES, self.world.joints().tolist(), strict=True))
        return {**joints, **self._view.capture(self.world)}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Advance the world by one control period; returns what the arm was told.

        Raises:
            ValueError: a joint is missing, or without a guard a value is not finite.
        """
        missing = [name for name in ACTION_NAMES if name not in action]
        if missing:
            raise ValueError(
                f"action: {', '.join(missing)} missing, found {sorted(action)}, expected {list(ACTION_NAMES)}."
            )
        told = np.array([action[name] for name in ACTION_NAMES])
        if self._guard is not None:
            told = self._guard.check(told)
        self.world.step(told, self._disturbance)
        self._disturbance = None
        self._report_success()
        self._lay_table_anew_when_home()
        return dict(zip(ACTION_NAMES, told.tolist(), strict=True)) if self._guard is not None else action

    def _reset(self, start: Start) -> None:
        self.world.reset(start)
        if self._guard is not None:
            self._guard.stand(self.world.joints())

    def disturb(self, disturbance: np.ndarray) -> None:
        """Shake the next command by `disturbance` (6,) in LeRobot units."""
        self._disturbance = disturbance

    def _start(self) -> Start:
        """The start of the present seed, or of the next one whose instruction is the one asked for."""
        from .start import training_start
        from .tasks import TASKS

        seen = set()
        for seed in range(self._seed, self._seed + 1000):
            start = training_start(self.config.task, self.config.level, seed)
            instruction = TASKS[self.config.task].instruction(start.goal)
            if self.config.instruction in ("", instruction):
                self._seed = seed
                return start
            seen.add(instruction)
        raise ValueError(
            f"--robot.instruction: found {self.config.instruction!r}, expected one of {sorted(seen)} "
            f"for the task {self.config.task}."
        )

    def _report_success(self) -> None:
        if self.world.is_success() and not self._was_success:
            logger.info(
                "so101 workbench: done after %.1f s: %s", self.world.ticks / FPS, self.world.instruction()
            )
        self._was_success = self.world.is_success()

    def _lay_table_anew_when_home(self) -> None:
        if not self.world.is_finite():
            self._seed += 1
            self._reset(self._start())
            return
        if self._home_rule.came_home(self.world.joints()):
            self._seed += 1
            self.world.place(self._start())
            logger.info(
                "so101 workbench: home again, start %d laid out: %s", self._seed, self.world.instruction()
            )
