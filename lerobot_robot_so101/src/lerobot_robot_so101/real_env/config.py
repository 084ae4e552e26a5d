# SPDX-License-Identifier: Apache-2.0
"""`--env.type=so101_real`: an arm on a table, for `lerobot-eval`."""

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

from lerobot_processor_so101 import AddFPSProcessorStep
from lerobot_processor_so101.arm import HOME, JOINTS
from lerobot_processor_so101.config_checks import check_choices

KEY = "key"  # the operator judges


@EnvConfig.register_subclass("so101_real")
@dataclass(kw_only=True)
class SO101RealEnvConfig(EnvConfig):
    """An evaluation on hardware.

    Args:
        robot: any LeRobot robot with the joints of an SO-101, such as `so101_guarded`.
        starts: JSON file of frozen initial states, as `so101-starts` writes it.
        results: JSON Lines file that results are appended to; an existing one resumes its evaluation.
        episode_time_s: longest duration of an episode [s].
        home: joint positions before each episode, in the arm's units. The default is in degrees.
        home_time_s: duration of homing [s].
        success: `key` to ask the operator, or an automatic check: `inside`, `lifted`.
        segmenter, camera, target, container: of the automatic check; see `SuccessCheck`.
    """

    robot: RobotConfig
    starts: Path = Path("outputs/starts/starts.json")
    results: Path = Path("outputs/real/results.jsonl")
    episode_time_s: float = 20.0
    home: list[float] = field(default_factory=lambda: HOME.tolist())
    home_time_s: float = 3.0
    success: str = KEY
    segmenter: str = ""
    camera: str = "top"
    target: str = ""
    container: str = ""

    def __post_init__(self) -> None:
        joints = PolicyFeature(FeatureType.STATE, (len(JOINTS),))
        self.features = {OBS_STATE: joints, ACTION: PolicyFeature(FeatureType.ACTION, joints.shape)}
        observed = make_robot_from_config(self.robot).observation_features  # built, not connected
        self.frame_shapes = {name: shape for name, shape in observed.items() if isinstance(shape, tuple)}
        for name, shape in self.frame_shapes.items():
            self.features[f"{OBS_IMAGES}.{name}"] = PolicyFeature(FeatureType.VISUAL, shape)
        self.features_map = {key: key for key in self.features}

    def check(self) -> None:
        """Raise ValueError if the check is unknown or lacks an option, or home has another size or units."""
        from .success import CHECKS

        check_choices(self, {"success": (KEY, *CHECKS)}, "--env.")
        needed = {"inside": ("segmenter", "target", "container"), "lifted": ("segmenter", "target")}
        missing = [name for name in needed.get(self.success, ()) if not getattr(self, name)]
        if missing:
            options = ", ".join(f"--env.{name}" for name in missing)
            raise ValueError(
                f"--env.success={self.success}: found no value of {options}, expected one of each."
            )
        if len(self.home) != len(JOINTS):
            raise ValueError(f"--env.home: found {len(self.home)} numbers, expected {len(JOINTS)}.")
        if self.home == HOME.tolist() and not getattr(self.robot, "use_degrees", True):
            raise ValueError(
                "--env.home: the default is in degrees, and --env.robot.use_degrees=false. Give it in "
                "-100..100: the positions that the arm reports in its home pose."
            )
        if self.fps <= 0 or self.episode_time_s <= 0:
            raise ValueError("--env.fps, --env.episode_time_s: expected more than 0.")

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def get_env_processors(self) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
        """Add the rate to observations, so that policies can check it; LeRobot does not pass it."""
        steps = [AddFPSProcessorStep(self.fps)]
        return PolicyProcessorPipeline(steps=steps), PolicyProcessorPipeline(steps=[])

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """Build the only environment.

        Raises:
            ValueError: if more are asked for; see also `check`.
        """
        if n_envs != 1:
            raise ValueError(f"--eval.batch_size: found {n_envs}, expected 1: there is one arm.")
        self.check()
        from .env import RealEnv

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # release the arm as after Ctrl-C

        # Without autoreset: the operator is asked once per episode, when LeRobot begins the next one.
        disabled = gym.vector.AutoresetMode.DISABLED
        return {"real": {0: gym.vector.SyncVectorEnv([lambda: RealEnv(self)], autoreset_mode=disabled)}}
