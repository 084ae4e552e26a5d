# SPDX-License-Identifier: Apache-2.0
"""An arm on a table as a Gymnasium environment: a person lays out each start and may pause, repeat and stop.

What is unusual about it:
- Seeds are not looked at. An episode is of the first start that has no result yet, so that an evaluation that was stopped
  goes on where it was.
- A result is on the disk before the next episode begins. One that is to be had again has none.
- It waits for the clock: steps come at `fps`, and a policy that is slower is told of at the end of the episode.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from lerobot.configs import parser
from lerobot.robots import make_robot_from_config
from lerobot.utils.robot_utils import precise_sleep

from lerobot_processor_so101.guard import JOINTS

from .human_operator import Aborted, Operator
from .results import Results
from .starts import SceneStart, read_starts

if TYPE_CHECKING:
    from .real_env_config import SO101RealEnvConfig

logger = logging.getLogger(__name__)

_HOME_WITHIN = 3.0  # deg, or percent of half a range
_HOME_WAIT_S = 10.0  # beyond the time that the way home takes


class RealEnv(gym.Env):
    """One arm, one table, one person.

    Observation: `agent_pos` (6,) float32 in the arm's units, `pixels` {camera: (H, W, 3) uint8}, and for pictures with one channel
    `images.<camera>` (1, H, W) float32, as the workbench's environment has them. Action: (6,) in the arm's units. `info` always
    has `is_success`.

    Args:
        config: see `SO101RealEnvConfig`.
        operator: who is asked.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, config: SO101RealEnvConfig, operator: Operator | None = None) -> None:
        self.config, self._operator = config, operator or Operator()
        self.metadata = {**self.metadata, "render_fps": config.fps}
        self.render_mode = "rgb_array"
        self._starts = read_starts(config.starts)
        self._results = Results(config.results, {start.name for start in self._starts}, _policy())
        self._check = self._make_check()
        self._robot: Any = None
        self._start: SceneStart | None = None
        self._ticks, self._late, self._due = 0, 0, 0.0
        self._seen: dict[str, Any] = {}
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (len(JOINTS),), np.float32)
        self.observation_space = _space(config.pictures)

    @property
    def task_description(self) -> str:
        return self._start.instruction if self._start else ""

    @property
    def task(self) -> str:
        return self.task_description

    @property
    def _max_episode_steps(self) -> int:
        return round(self.config.episode_time_s * self.config.fps)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Go home, have the next start laid out, and look.

        Raises:
            ValueError: all starts have results.
            Aborted: the operator stops.
        """
        super().reset(seed=seed)
        with self._letting_go():
            return self._lay_out(), {"is_success": False}

    def step(self, action: np.ndarray):
        """Send a command, wait for the next tick, and look.

        Raises:
            Aborted: the operator stops.
        """
        with self._letting_go():
            return self._step(action)

    @contextmanager
    def _letting_go(self) -> Iterator[None]:
        """LeRobot closes no environment that raises: let go of the arm ourselves."""
        try:
            yield
        except Aborted:
            self.close()
            raise Aborted(
                f"so101_real: stopped; {self._results.summary()} in {self._results.path}. The same command goes on from there."
            ) from None
        except BaseException:
            self.close()
            raise

    def _lay_out(self) -> dict[str, Any]:
        self._start = self._next_start()
        if self._robot is None:
            self._robot = make_robot_from_config(self.config.robot)
            self._robot.connect()
        self._go_home()
        self._report_guard("the way home")
        picture = f"\nIt should look like {self._start.picture}" if self._start.picture else ""
        number = len(self._results.done) + 1
        words = (
            f"\nStart {number} of {len(self._starts)}, {self._start.name}: {self._start.description}{picture}"
        )
        self._operator.ready(words)
        if self._check is not None:
            self._check.reset()
        self._operator.begin()
        self._ticks, self._late, self._due = 0, 0, time.perf_counter()
        return self._observe()

    def _step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if not self._paused():
            self._send(action)
        self._keep_time()
        self._ticks += 1
        observation = self._observe()
        met = self._check is not None and self._check(self._seen)
        over = met or self._operator.ended
        truncated = not over and self._ticks >= self._max_episode_steps
        success = self._finish(met) if over or truncated else False
        return observation, float(success), over, truncated, {"is_success": success}

    def render(self) -> np.ndarray:
        """What the cameras see, beside each other."""
        pictures = [
            value for value in self._seen.values() if getattr(value, "ndim", 0) == 3 and value.shape[2] == 3
        ]
        if not pictures:
            return np.zeros((64, 64, 3), np.uint8)
        height = min(picture.shape[0] for picture in pictures)
        return np.hstack([picture[:height] for picture in pictures])

    def close(self) -> None:
        self._operator.end()
        if self._robot is not None:
            robot, self._robot = self._robot, None
            robot.disconnect()

    def _make_check(self) -> Any:
        config = self.config
        if config.success == "key":
            return None
        from .success import SuccessCheck

        return SuccessCheck(config.success, config.camera, config.segmenter, config.target, config.container)

    def _next_start(self) -> SceneStart:
        done = self._results.done
        for start in self._starts:
            if start.name not in done:
                return start
        raise ValueError(
            f"--env.results: all {len(self._starts)} starts have results in {self._results.path}: "
            f"{self._results.summary()}. Name another file to evaluate anew, or ask for fewer `--eval.n_episodes`."
        )

    def _observe(self) -> dict[str, Any]:
        self._seen = self._robot.get_observation()
        joints = np.array([self._seen[f"{joint}.pos"] for joint in JOINTS], np.float32)
        observation: dict[str, Any] = {"agent_pos": joints}
        pixels = {}
        for name, (_, _, channels) in self.config.pictures.items():
            if channels == 3:
                pixels[name] = self._seen[name]
            else:
                observation[f"images.{name}"] = np.moveaxis(self._seen[name], -1, 0).astype(np.float32)
        return {**observation, "pixels": pixels} if pixels else observation

    def _send(self, joints: np.ndarray) -> None:
        self._robot.send_action({f"{joint}.pos": float(j) for joint, j in zip(JOINTS, joints, strict=True)})

    def _go_home(self) -> None:
        """In equal steps: a guard would slow a leap down, a stock robot would not. Then wait until the arm is there.

        Raises:
            TimeoutError: a joint does not get there; the message names it.
        """
        home, begin = np.array(self.config.home), self._joints()
        ticks = max(1, round(self.config.home_time_s * self.config.fps))
        for tick in range(1, ticks + 1):
            self._send(begin + (home - begin) * tick / ticks)
            precise_sleep(1 / self.config.fps)
        for _ in range(round(_HOME_WAIT_S * self.config.fps)):
            if self._from_home().max() <= _HOME_WITHIN:
                return
            self._send(home)
            precise_sleep(1 / self.config.fps)
        off = self._from_home()
        raise TimeoutError(
            f"so101_real: {JOINTS[int(off.argmax())]} is {off.max():.0f} from home {_HOME_WAIT_S:.0f} s after the arm should be "
            "there. See what it pushes against, and whether `--env.home` is within the arm's limits."
        )

    def _joints(self) -> np.ndarray:
        """Where the arm is, (6,) in its units."""
        seen = self._robot.get_observation()
        return np.array([seen[f"{joint}.pos"] for joint in JOINTS])

    def _from_home(self) -> np.ndarray:
        """How far the body joints are from home, (5,)."""
        return np.abs(self._joints() - self.config.home)[:-1]

    def _paused(self) -> bool:
        """Whether there was a pause: the arm holds what it was last told, and the episode's clock stands still.

        What the policy wants is then of before the pause, and is not to be sent any more.
        """
        if not self._operator.paused:
            return False
        while self._operator.paused and not self._operator.ended:
            time.sleep(0.05)
        self._due = time.perf_counter()
        return True

    def _report_guard(self, of: str) -> str:
        """What the robot's guard made of what it was sent, in a line that is logged too; empty if it has none."""
        guard = getattr(self._robot, "guard", None)
        told = guard.report() if guard is not None else ""
        if told:
            logger.info("so101_real: %s: %s", of, told)
        return told

    def _keep_time(self) -> None:
        self._due += 1 / self.config.fps
        left = self._due - time.perf_counter()
        if left > 0:
            precise_sleep(left)
        else:
            self._late += 1
            self._due = time.perf_counter()  # what was missed is not made up for

    def _finish(self, met: bool) -> bool:
        """Have the episode judged, and write it down.

        Raises:
            Aborted: the operator stops; the episode is not written down.
        """
        operator, start = self._operator, self._start
        assert start is not None
        operator.end()
        guard = self._report_guard(start.name)
        if operator.aborted:
            raise Aborted
        verdict: bool | None = None if operator.retake else met
        if not operator.retake and self._check is None:
            verdict = operator.judge()
        if verdict is None:
            logger.warning(
                "so101_real: %s is laid out again; LeRobot counts this try as a failure.", start.name
            )
            return False
        seconds = round(self._ticks / self.config.fps, 2)
        judged_by, late_ticks = self.config.success, self._late
        self._results.add(
            start.name, verdict, seconds=seconds, judged_by=judged_by, late_ticks=late_ticks, guard=guard
        )
        late = f", {self._late} of {self._ticks} ticks late" if self._late else ""
        logger.info("so101_real: %s%s; so far %s", start.name, late, self._results.summary())
        return verdict


def _policy() -> str | None:
    """`--policy.path`, with links such as `last` followed; None if there is none."""
    path = parser.get_path_arg("policy")
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def _space(pictures: dict[str, tuple[int, int, int]]) -> gym.spaces.Dict:
    spaces: dict[str, gym.Space] = {"agent_pos": gym.spaces.Box(-np.inf, np.inf, (len(JOINTS),), np.float32)}
    pixels: dict[str, gym.Space] = {}
    for name, (height, width, channels) in pictures.items():
        if channels == 3:
            pixels[name] = gym.spaces.Box(0, 255, (height, width, 3), np.uint8)
        else:
            spaces[f"images.{name}"] = gym.spaces.Box(-np.inf, np.inf, (1, height, width), np.float32)
    return gym.spaces.Dict({**spaces, "pixels": gym.spaces.Dict(pixels)} if pixels else spaces)
