# SPDX-License-Identifier: Apache-2.0
"""The workbench as a Gymnasium environment that LeRobot's evaluation understands."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np

from lerobot_processor_so101.guard import GuardLimits

from .arm import FPS, JOINTS
from .overlay import film_frame
from .start import evaluation_start, training_start
from .tick_guard import TickGuard
from .views import MAX_DEPTH_MM, View
from .world import World

logger = logging.getLogger(__name__)


class WorkbenchEnv(gym.Env):
    """One arm, one task.

    Observation: `agent_pos` (6,) float32 in LeRobot units; `pixels` {camera: (H, W, 3) uint8} if the view has
    colours; `images.<camera>_seg` (1, H, W) float32 class ids and `images.<camera>_depth` (1, H, W) float32
    millimetres, which LeRobot passes on as `observation.images.…`, just as its data loader does.

    Action: (6,) goal positions in LeRobot units. A value of the wrong size or a NaN raises ValueError.

    Reward: gain in progress, so an episode's sum is how far it came. `info` always has `is_success`, `progress`
    and `progress/<term>`. An episode ends at success, when the state is not finite (a failure), or when the
    task's time is up.

    Args:
        task, level: see `names`.
        starts: `eval` for the frozen starts (number = seed modulo 200), `train` to draw one from the seed.
        view: which pictures to take.
        renderer, shadows: see `World`.
        limits: of the guard that actions go through, which holds where they are no numbers; None for no guard.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}

    def __init__(
        self,
        task: str,
        level: str = "clean",
        starts: str = "eval",
        view: View | None = None,
        renderer: str = "auto",
        shadows: bool = False,
        render_mode: str = "rgb_array",
        limits: GuardLimits | None = None,
    ) -> None:
        self.task, self.level, self._starts = task, level, starts
        self.render_mode = render_mode
        self._view = (view or View()).check()
        self._make_world = lambda: World(task, level, renderer, shadows)
        self._world: World | None = None
        self._guard = TickGuard(limits) if limits else None
        self._next_seed, self._progress = 0, 0.0
        self.observation_space = _observation_space(self._view)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (len(JOINTS),), np.float32)

    @property
    def world(self) -> World:
        """The simulated world, built on first use: several tasks may be set up long before they are run."""
        if self._world is None:
            self._world = self._make_world()
        return self._world

    @property
    def task_description(self) -> str:
        return self.world.instruction()

    @property
    def _max_episode_steps(self) -> int:
        return self.world.task.time_limit_ticks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._report_guard()
        if seed is None:
            seed = self._next_seed
        self._next_seed = seed + 1
        draw = evaluation_start if self._starts == "eval" else training_start
        self.world.reset(draw(self.task, self.level, seed))
        if self._guard is not None:
            self._guard.stand(self.world.joints())
        info = self._info()
        self._progress = info["progress"]
        return self._observe(), info

    def step(self, action: np.ndarray):
        self.world.step(action if self._guard is None else self._guard.check(action))
        info = self._info()
        reward, self._progress = info["progress"] - self._progress, info["progress"]
        diverged = not self.world.is_finite()
        terminated = info["is_success"] or diverged
        truncated = not terminated and self.world.ticks >= self._max_episode_steps
        if diverged:  # nothing of it can be looked at any more: show where it began
            self.world.reset(self.world.start)
        return self._observe(), reward, terminated, truncated, info

    def render(self) -> np.ndarray:
        """A picture for people: the arm from the front, beside what its cameras see."""
        return film_frame(self.world, masks=self._view.seg)

    def close(self) -> None:
        self._report_guard()
        if self._world is not None:
            self._world.close()
            self._world = None

    def _report_guard(self) -> None:
        """Say what the guard made of the episode that is over."""
        if self._guard is not None and (told := self._guard.report()):
            logger.info("so101 workbench: %s", told)

    def _info(self) -> dict[str, Any]:
        terms = self.world.terms()
        return {
            "is_success": self.world.is_success(),
            "progress": self.world.progress(terms),
            **{f"progress/{name}": value for name, value in terms.items()},
        }

    def _observe(self) -> dict[str, Any]:
        observation: dict[str, Any] = {"agent_pos": self.world.joints().astype(np.float32)}
        pixels = {}
        for name, picture in self._view.capture(self.world).items():
            if picture.shape[-1] == 3:
                pixels[name] = picture
            else:
                observation[f"images.{name}"] = np.moveaxis(picture, -1, 0).astype(np.float32)
        if pixels:
            observation["pixels"] = pixels
        return observation


def _observation_space(view: View) -> gym.spaces.Dict:
    spaces: dict[str, gym.Space] = {"agent_pos": gym.spaces.Box(-np.inf, np.inf, (len(JOINTS),), np.float32)}
    pixels: dict[str, gym.Space] = {}
    for name, (height, width, channels) in view.shapes().items():
        if channels == 3:
            pixels[name] = gym.spaces.Box(0, 255, (height, width, 3), np.uint8)
        else:
            spaces[f"images.{name}"] = gym.spaces.Box(0, MAX_DEPTH_MM, (1, height, width), np.float32)
    if pixels:
        spaces["pixels"] = gym.spaces.Dict(pixels)
    return gym.spaces.Dict(spaces)
