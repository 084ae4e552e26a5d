# SPDX-License-Identifier: Apache-2.0
"""`--env.type=so101_real`: an arm on a table, for `lerobot-eval`."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.processor import PolicyProcessorPipeline
from lerobot.robots import make_robot_from_config
from lerobot.robots.config import RobotConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from lerobot_processor_so101 import TellFPSProcessorStep
from lerobot_processor_so101.guard import JOINTS

KEY = "key"  # success is what the operator says
HOME = (0.0, -80.0, 30.0, 85.0, -90.0, 50.0)  # deg, percent


@EnvConfig.register_subclass("so101_real")
@dataclass(kw_only=True)
class SO101RealEnvConfig(EnvConfig):
    """An evaluation on hardware.

    Args:
        robot: any LeRobot robot with the joints of an SO-101, such as `so101_guarded`.
        starts: JSON file of frozen starts, as `so101-starts` writes it.
        results: JSON Lines file that each episode is appended to; going on with an evaluation is to name it again.
        episode_time_s: an episode is over after so long [s].
        home: joints that the arm goes to before each start, in its units. The default is in degrees.
        home_time_s: time that it takes for that [s].
        success: `key` to be asked, or a named check: inside, lifted.
        segmenter, camera, target, container: what the check looks with, through, for, and into; see `SuccessCheck`.
    """

    robot: RobotConfig
    starts: Path = Path("outputs/starts/starts.json")
    results: Path = Path("outputs/real/results.jsonl")
    episode_time_s: float = 20.0
    home: list[float] = field(default_factory=lambda: list(HOME))
    home_time_s: float = 3.0
    success: str = KEY
    segmenter: str = ""
    camera: str = "top"
    target: str = ""
    container: str = ""

    def __post_init__(self) -> None:
        joints = PolicyFeature(FeatureType.STATE, (len(JOINTS),))
        self.features = {OBS_STATE: joints, ACTION: PolicyFeature(FeatureType.ACTION, joints.shape)}
        seen = make_robot_from_config(self.robot).observation_features  # built, not connected
        self.pictures = {name: tuple(shape) for name, shape in seen.items() if isinstance(shape, tuple)}
        for name, shape in self.pictures.items():
            self.features[f"{OBS_IMAGES}.{name}"] = PolicyFeature(FeatureType.VISUAL, shape)
        self.features_map = {key: key for key in self.features}

    def check(self) -> None:
        """Say what cannot be.

        Raises:
            ValueError: an unknown check, one without what it needs, or a home of another size or in other units.
        """
        from .success import CHECKS

        if self.success not in (KEY, *CHECKS):
            raise ValueError(
                f"--env.success: found {self.success!r}, expected one of {', '.join((KEY, *CHECKS))}."
            )
        needed = {"inside": ("segmenter", "target", "container"), "lifted": ("segmenter", "target")}
        missing = [name for name in needed.get(self.success, ()) if not getattr(self, name)]
        if missing:
            options = ", ".join(f"--env.{name}" for name in missing)
            raise ValueError(
                f"--env.success={self.success}: found nothing for {options}, expected something."
            )
        if len(self.home) != len(JOINTS):
            raise ValueError(f"--env.home: found {len(self.home)} numbers, expected {len(JOINTS)}.")
        if tuple(self.home) == HOME and not getattr(self.robot, "use_degrees", True):
            raise ValueError(
                "--env.home: the default is in degrees, and --env.robot.use_degrees=false. Give it in -100..100: what the arm "
                "reports where it is to stand before each start."
            )
        if self.fps <= 0 or self.episode_time_s <= 0:
            raise ValueError("--env.fps, --env.episode_time_s: expected more than 0.")

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def get_env_processors(self) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
        """Tell policies the rate, which LeRobot does not."""
        before = PolicyProcessorPipeline(steps=[TellFPSProcessorStep(self.fps)])
        return before, PolicyProcessorPipeline(steps=[])

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """One environment: there is one arm.

        Raises:
            ValueError: more are asked for; see also `check`.
        """
        if n_envs != 1:
            raise ValueError(f"--eval.batch_size: found {n_envs}, expected 1: there is one arm.")
        self.check()
        from .real_env import RealEnv

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # let go of the arm, as at Ctrl-C

        # Without autoreset: the operator is asked once per episode, when LeRobot begins the next one.
        disabled = gym.vector.AutoresetMode.DISABLED
        return {"real": {0: gym.vector.SyncVectorEnv([lambda: RealEnv(self)], autoreset_mode=disabled)}}
