# SPDX-License-Identifier: Apache-2.0
"""The workbench as a Gymnasium environment for LeRobot's evaluation."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from lerobot_processor_so101.arm import FPS, JOINTS
from lerobot_processor_so101.env_observations import as_observation, observation_space
from lerobot_processor_so101.guard import GuardLimits
from lerobot_processor_so101.perception.overlay import overlay

from .sim.cameras import MAX_DEPTH_MM, CameraSetup
from .sim.initial_states import evaluation_initial_state, training_initial_state, validation_initial_state
from .sim.outcome import EpisodeOutcome
from .sim.world import World
from .tick_guard import TickGuard

_VIDEO_SIDE = 360  # pixels
_INITIAL_STATES = {
    "eval": evaluation_initial_state,
    "validation": validation_initial_state,
    "train": training_initial_state,
}


class WorkbenchEnv(gym.Env):
    """One arm, one task.

    Observation: see `as_observation`; images are named as by `CameraSetup`.

    Action: (6,) goal positions in LeRobot's units. Without a guard, a wrong size or a NaN raises ValueError.

    Reward: increase of the progress; its sum is the progress of the episode. `info` contains `is_success`,
    `progress` and `progress/<term>`. An episode ends at success, at a non-finite state (a failure), or at
    the time limit.

    Args:
        starts, episode_log: see `SO101SimEnvConfig`.
        cameras: which images to render.
        renderer, shadows: see `World`.
        limits: of the guard that checks actions; None for no guard.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}

    def __init__(
        self,
        task: str,
        level: str = "clean",
        starts: str = "eval",
        cameras: CameraSetup | None = None,
        renderer: str = "auto",
        shadows: bool = False,
        render_mode: str = "rgb_array",
        limits: GuardLimits | None = None,
        episode_log: Path | None = None,
    ) -> None:
        self.task, self.level = task, level
        self.render_mode = render_mode
        self._draw = _INITIAL_STATES[starts]
        self._cameras = (cameras or CameraSetup()).check()
        self._world_options = (renderer, shadows)
        self._world: World | None = None
        self._guard = TickGuard(limits) if limits else None
        self._episode_log, self._outcome = episode_log, EpisodeOutcome()
        self._next_seed, self._progress = 0, 0.0
        self.observation_space = observation_space(self._cameras.shapes(), MAX_DEPTH_MM)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (len(JOINTS),), np.float32)

    @property
    def world(self) -> World:
        """The simulated world, built on first use: LeRobot creates the environments of all tasks at once."""
        if self._world is None:
            self._world = World(self.task, self.level, *self._world_options)
        return self._world

    @property
    def task_description(self) -> str:
        return self.world.instruction()

    @property
    def _max_episode_steps(self) -> int:
        return self.world.task.time_limit_ticks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is None:
            seed = self._next_seed
        self._next_seed = seed + 1
        self.world.reset(self._draw(self.task, self.level, seed))
        if self._guard is not None:
            self._guard.log_report()
            self._guard.initialise(self.world.joints())
        self._outcome = EpisodeOutcome()
        info = self._info()
        self._progress = info["progress"]
        return self._observe(), info

    def step(self, action: np.ndarray):
        # 1. advance the world by one control period
        self.world.step(action if self._guard is None else self._guard.check(action))
        # 2. reward: the increase of the progress
        info = self._info()
        reward, self._progress = info["progress"] - self._progress, info["progress"]
        # 3. end of the episode
        self._outcome.update(self.world)
        diverged = not self.world.is_finite()
        terminated = info["is_success"] or diverged
        truncated = not terminated and self.world.ticks >= self._max_episode_steps
        if terminated or truncated:
            self._log_episode()
        if diverged:  # a non-finite state cannot be rendered: observe the initial state instead
            self.world.reset(self.world.initial_state)
        return self._observe(), reward, terminated, truncated, info

    def render(self) -> np.ndarray:
        """Render a video frame for people: the front view, and the top and wrist views stacked beside it.

        Returns:
            (360, 540, 3) uint8; with masks over the top and wrist views if the setup has them.
        """

        def view(camera: str, side: int, masks: bool) -> np.ndarray:
            rgb, ids, _ = self.world.render(camera, side, side, ids=masks)
            assert rgb is not None
            return rgb if ids is None else overlay(rgb, ids, self.world.class_names, legend=False)

        insets = [view(camera, _VIDEO_SIDE // 2, self._cameras.seg) for camera in ("top", "wrist")]
        return np.hstack([view("front", _VIDEO_SIDE, False), np.vstack(insets)])

    def close(self) -> None:
        if self._guard is not None:
            self._guard.log_report()
        if self._world is not None:
            self._world.close()
            self._world = None

    def _log_episode(self) -> None:
        if self._episode_log is None:
            return
        self._episode_log.parent.mkdir(parents=True, exist_ok=True)
        row = {"task": self.task, "level": self.level, "seed": self._next_seed - 1}
        row |= {"ticks": self.world.ticks, "outcome": self._outcome.name(self.world)}
        with self._episode_log.open("a") as file:  # one write per line: environments share the file
            file.write(json.dumps(row) + "\n")

    def _info(self) -> dict[str, Any]:
        terms = self.world.terms()
        progress = {f"progress/{name}": value for name, value in terms.items()}
        return {"is_success": self.world.is_success(), "progress": self.world.progress(terms), **progress}

    def _observe(self) -> dict[str, Any]:
        return as_observation(self.world.joints(), self._cameras.capture(self.world))
