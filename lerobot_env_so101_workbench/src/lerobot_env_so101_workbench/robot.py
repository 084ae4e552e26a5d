# SPDX-License-Identifier: Apache-2.0
"""The simulated arm as a LeRobot robot, instead of `so101_follower`.

LeRobot's commands never reset a robot between episodes. The scene is therefore reset whenever the arm has
been away and has returned to its ready pose (see `sim.scene_reset`). This works for the scripted expert, for
`lerobot-rollout`, which homes the arm after an episode, and for a person with a leader arm.
"""

import logging
from typing import Any

import numpy as np
from lerobot.robots import Robot

from lerobot_processor_so101.arm import ACTION_NAMES, FPS

from .device_configs import SO101SimConfig
from .sim.initial_states import InitialState
from .sim.scene_reset import SceneReset
from .sim.world import World
from .tick_guard import TickGuard

logger = logging.getLogger(__name__)


class SO101Sim(Robot):
    """Simulated SO-101 follower; every action advances the world by one control period of 1/30 s."""

    config_class = SO101SimConfig
    name = "so101_sim"
    action_features = dict.fromkeys(ACTION_NAMES, float)
    is_calibrated = True  # the encoders are exact

    def __init__(self, config: SO101SimConfig) -> None:
        super().__init__(config)
        config.check()
        self.config = config
        self._camera_setup = config.camera_setup()
        self.cameras = dict.fromkeys(self._camera_setup.shapes(), self._camera_setup)
        self._world: World | None = None
        self._guard = TickGuard(config.limits) if config.guarded else None
        self._scene_reset = SceneReset(config.task, config.level, config.seed, config.instruction)
        self._was_success = False
        self._disturbance: np.ndarray | None = None

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        return {**dict.fromkeys(ACTION_NAMES, float), **self._camera_setup.shapes()}

    @property
    def is_connected(self) -> bool:
        return self._world is not None

    @property
    def world(self) -> World:
        """The simulated world.

        Raises:
            ConnectionError: if the robot is not connected.
        """
        if self._world is None:
            raise ConnectionError("so101_sim is not connected: call connect() first.")
        return self._world

    def connect(self, calibrate: bool = True) -> None:
        config = self.config
        if config.world in _robots:
            raise ConnectionError(
                f"so101_sim: world {config.world!r} is in use; choose another --robot.world."
            )
        state = self._scene_reset.present()
        self._world = World(config.task, config.level, config.renderer, config.shadows)
        self._reset(state)
        _robots[config.world] = self

    def disconnect(self) -> None:
        if self._world is not None:
            if self._guard is not None:
                self._guard.log_report()
            self._world.close()
            self._world = None
            _robots.pop(self.config.world, None)

    def calibrate(self) -> None:
        """Do nothing."""

    def configure(self) -> None:
        """Do nothing."""

    def get_observation(self) -> dict[str, Any]:
        joints = dict(zip(ACTION_NAMES, self.world.joints().tolist(), strict=True))
        return {**joints, **self._camera_setup.capture(self.world)}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Advance the world by one control period and return the executed command.

        Raises:
            ValueError: if a joint is missing, or without a guard if a value is not finite.
        """
        if missing := [name for name in ACTION_NAMES if name not in action]:
            found = f"found {sorted(action)}, expected {list(ACTION_NAMES)}"
            raise ValueError(f"action: {', '.join(missing)} missing, {found}.")
        # 1. check the command
        command = np.array([action[name] for name in ACTION_NAMES])
        if self._guard is not None:
            command = self._guard.check(command)
            action = dict(zip(ACTION_NAMES, command.tolist(), strict=True))
        # 2. execute it, with a pending disturbance
        self.world.step(command, self._disturbance)
        self._disturbance = None
        # 3. report success
        success = self.world.is_success()
        if success and not self._was_success:
            seconds = self.world.ticks / FPS
            logger.info("so101 workbench: done after %.1f s: %s", seconds, self.world.instruction())
        self._was_success = success
        # 4. reset a diverged world, or the scene if it is due
        if not self.world.is_finite():
            self._reset(self._scene_reset.next())
        elif self._scene_reset.is_due(self.world.joints()):
            self.world.place(self._scene_reset.next())
            seed, instruction = self._scene_reset.seed, self.world.instruction()
            logger.info("so101 workbench: scene reset, seed %d: %s", seed, instruction)
        return action

    def disturb(self, disturbance: np.ndarray) -> None:
        """Add `disturbance` (6,) in LeRobot's units to the next command."""
        self._disturbance = disturbance

    def _reset(self, state: InitialState) -> None:
        self.world.reset(state)
        if self._guard is not None:
            self._guard.initialise(self.world.joints())


_robots: dict[str, SO101Sim] = {}  # connected, by the name of their worlds


def find_robot(world: str) -> SO101Sim:
    """Return the connected robot of this name in this process.

    Raises:
        ConnectionError: if there is none.
    """
    if world not in _robots:
        raise ConnectionError(
            f"so101_expert: no so101_sim robot is connected as world {world!r} (found: "
            f"{sorted(_robots) or 'none'}). Use --robot.type=so101_sim in the same command, with "
            "--robot.world equal to --teleop.world."
        )
    return _robots[world]
