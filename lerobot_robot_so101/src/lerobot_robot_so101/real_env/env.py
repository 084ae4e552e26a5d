# SPDX-License-Identifier: Apache-2.0
"""An arm on a table as a Gymnasium environment: an operator sets up initial states and judges episodes.

What is unusual about it:
- Seeds are ignored. An episode takes the first initial state without a result, so evaluations can resume.
- A result is on the disk before the next episode begins. A repeated episode has none.
- It runs in real time: steps come at `fps`, and the number of late ones is logged at the end of the episode.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs import parser
from lerobot.robots import make_robot_from_config
from lerobot.utils.robot_utils import precise_sleep

from lerobot_processor_so101.arm import ACTION_NAMES, JOINTS
from lerobot_processor_so101.env_observations import as_observation, observation_space

from .config import KEY, SO101RealEnvConfig
from .initial_states import InitialState, read_initial_states
from .operator import Aborted, Operator
from .results import Results

logger = logging.getLogger(__name__)

_HOME_TOLERANCE = 3.0  # deg, or percent of half a range
_HOME_TIMEOUT_S = 10.0  # beyond the time that homing should take


class RealEnv(gym.Env):
    """One arm, one table, one operator.

    Observation: see `as_observation`; joints and actions (6,) are in the arm's units. `info` always has
    `is_success`.
    """

    def __init__(self, config: SO101RealEnvConfig, operator: Operator | None = None) -> None:
        self.config, self._operator = config, operator or Operator()
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": config.fps}
        self.render_mode = "rgb_array"
        self._initial_states = read_initial_states(config.starts)
        names = {state.name for state in self._initial_states}
        self._results = Results(config.results, names, _policy_path())
        self._check: Any = None
        if config.success != KEY:
            from .success import SuccessCheck

            self._check = SuccessCheck(
                config.success, config.camera, config.segmenter, config.target, config.container
            )
        self._robot: Any = None
        self._initial_state: InitialState | None = None
        self._ticks, self._late_ticks, self._next_tick = 0, 0, 0.0
        self._observed: dict[str, Any] = {}
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (len(JOINTS),), np.float32)
        self.observation_space = observation_space(config.frame_shapes)

    @property
    def task_description(self) -> str:
        return self._initial_state.instruction if self._initial_state else ""

    task = task_description

    @property
    def _max_episode_steps(self) -> int:
        return round(self.config.episode_time_s * self.config.fps)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Home the arm, have the next initial state set up, and observe.

        Raises:
            ValueError: if every initial state has a result.
            Aborted: if the operator stops.
        """
        super().reset(seed=seed)
        with self._closing_on_error():
            state = self._initial_state = self._next_initial_state()
            if self._robot is None:
                self._robot = make_robot_from_config(self.config.robot)
                self._robot.connect()
            self._go_home()
            self._report_guard("homing")
            image = f"\nReference image: {state.image}" if state.image else ""
            number = f"{len(self._results.done) + 1} of {len(self._initial_states)}"
            self._operator.ready(f"\nInitial state {number}, {state.name}: {state.description}{image}")
            if self._check is not None:
                self._check.reset()
            self._operator.begin()
            self._ticks, self._late_ticks, self._next_tick = 0, 0, time.perf_counter()
            return self._observe(), {"is_success": False}

    def step(self, action: np.ndarray):
        """Send a command, wait for the next control period, and observe.

        Raises:
            Aborted: if the operator stops.
        """
        with self._closing_on_error():
            if not self._wait_while_paused():  # after a pause the action answers an old observation: drop it
                self._send(action)
            self._wait_for_next_tick()
            self._ticks += 1
            observation = self._observe()
            met = self._check is not None and self._check(self._observed)
            terminated = met or self._operator.ended
            truncated = not terminated and self._ticks >= self._max_episode_steps
            success = self._end_episode(met) if terminated or truncated else False
            return observation, float(success), terminated, truncated, {"is_success": success}

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """Release the arm on every error, because LeRobot does not close an environment that raises."""
        try:
            yield
        except Aborted:
            self.close()
            raise Aborted(
                f"so101_real: stopped; {self._results.summary()} in {self._results.path}. The same command "
                "resumes the evaluation."
            ) from None
        except BaseException:
            self.close()
            raise

    def render(self) -> np.ndarray:
        """Return the camera frames side by side."""
        names = [name for name, shape in self.config.frame_shapes.items() if shape[2] == 3]
        frames = [self._observed[name] for name in names if name in self._observed]
        if not frames:
            return np.zeros((64, 64, 3), np.uint8)
        height = min(frame.shape[0] for frame in frames)
        return np.hstack([frame[:height] for frame in frames])

    def close(self) -> None:
        self._operator.end()
        if self._robot is not None:
            robot, self._robot = self._robot, None
            robot.disconnect()

    def _next_initial_state(self) -> InitialState:
        for state in self._initial_states:
            if state.name not in self._results.done:
                return state
        raise ValueError(
            f"--env.results: all {len(self._initial_states)} initial states have results in "
            f"{self._results.path}: {self._results.summary()}. Name another file to evaluate again, or ask "
            "for fewer `--eval.n_episodes`."
        )

    def _observe(self) -> dict[str, Any]:
        joints = self._joints()
        return as_observation(joints, {name: self._observed[name] for name in self.config.frame_shapes})

    def _send(self, joints: np.ndarray) -> None:
        self._robot.send_action(dict(zip(ACTION_NAMES, map(float, joints), strict=True)))

    def _go_home(self) -> None:
        """Move home in small steps, since a robot without a guard would jump; then wait until it is there."""
        home, begin = np.array(self.config.home), self._joints()
        seconds, fps = self.config.home_time_s, self.config.fps
        if (path_to := getattr(self._robot, "path_to", None)) is not None:  # around the table
            path = path_to(begin, home, seconds, fps)
        else:
            ticks = max(1, round(seconds * fps))
            path = begin + (home - begin) * np.arange(1, ticks + 1)[:, None] / ticks
        for joints in path:
            self._send(joints)
            precise_sleep(1 / fps)
            self._joints()  # a guard needs measurements
        for _ in range(round(_HOME_TIMEOUT_S * fps)):
            distance = np.abs(self._joints() - home)[:-1]  # a gripper with an object may never get there
            if distance.max() <= _HOME_TOLERANCE:
                return
            self._send(home)
            precise_sleep(1 / fps)
        raise TimeoutError(
            f"so101_real: {JOINTS[int(distance.argmax())]} is {distance.max():.0f} from home "
            f"{_HOME_TIMEOUT_S:.0f} s after the arm should be there. Check what it pushes against, and "
            "whether `--env.home` is within the arm's limits."
        )

    def _joints(self) -> np.ndarray:
        """Read an observation, and return the joint positions, (6,) in the arm's units."""
        self._observed = self._robot.get_observation()
        return np.array([self._observed[name] for name in ACTION_NAMES])

    def _wait_while_paused(self) -> bool:
        """Wait until the operator ends a pause; return whether there was one. The arm holds its last goal."""
        if not self._operator.paused:
            return False
        while self._operator.paused and not self._operator.ended:
            time.sleep(0.05)
        self._next_tick = time.perf_counter()  # the episode's clock stops during a pause
        return True

    def _wait_for_next_tick(self) -> None:
        self._next_tick += 1 / self.config.fps
        left = self._next_tick - time.perf_counter()
        if left > 0:
            precise_sleep(left)
        else:
            self._late_ticks += 1
            self._next_tick = time.perf_counter()  # lost time is not made up by faster ticks

    def _report_guard(self, phase: str) -> str:
        """Log and return the guard's report since the last one; empty if the robot has no guard."""
        guard = getattr(self._robot, "guard", None)
        report = guard.report() if guard is not None else ""
        if report:
            logger.info("so101_real: %s: %s", phase, report)
        return report

    def _end_episode(self, met: bool) -> bool:
        """Have the episode judged, and write its result; Aborted, and no result, if the operator stops."""
        operator, state = self._operator, self._initial_state
        assert state is not None
        operator.end()
        guard = self._report_guard(state.name)
        if operator.aborted:
            raise Aborted
        success: bool | None = met
        if operator.retake:
            success = None
        elif self._check is None:
            success = operator.judge()
        if success is None:
            logger.warning("so101_real: %s is repeated; LeRobot counts this try as a failure.", state.name)
            return False
        seconds = round(self._ticks / self.config.fps, 2)
        details = {"judged_by": self.config.success, "late_ticks": self._late_ticks, "guard": guard}
        self._results.add(state.name, success, seconds=seconds, **details)
        late = f", {self._late_ticks} of {self._ticks} ticks late" if self._late_ticks else ""
        logger.info("so101_real: %s%s; so far %s", state.name, late, self._results.summary())
        return success


def _policy_path() -> str | None:
    """`--policy.path` with symbolic links such as `last` resolved; None if there is none."""
    path = parser.get_path_arg("policy")
    return str(Path(path).resolve()) if path and Path(path).exists() else path
