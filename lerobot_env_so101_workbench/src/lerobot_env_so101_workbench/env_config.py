# SPDX-License-Identifier: Apache-2.0
"""`--env.type=so101_sim`: the workbench for `lerobot-eval` and for evaluation inside `lerobot-train`."""

import multiprocessing
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end
from lerobot.processor import PolicyProcessorPipeline, ProcessorStep
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from lerobot_processor_so101 import AddClassNamesProcessorStep, AddFPSProcessorStep
from lerobot_processor_so101.arm import FPS, JOINTS
from lerobot_processor_so101.config_checks import check_choices
from lerobot_processor_so101.guard import GuardLimits

from .names import STARTS, check_level, check_task
from .sim.cameras import CameraSetup, ImageOptions


@EnvConfig.register_subclass("so101_sim")
@dataclass
class SO101SimEnvConfig(ImageOptions, EnvConfig):
    """The workbench as an environment, with `ImageOptions`.

    Args:
        task: one task, or several separated by commas; each is evaluated by itself.
        level: one level, or several separated by commas.
        starts: `eval` for the frozen evaluation states and `validation` for the validation states (index =
            seed modulo 200), `train` for the training state of the seed.
        cameras: of top, wrist, front.
        shadows: render shadows (slower).
        renderer: auto, egl, osmesa, glfw or ray.
        guarded: check actions against `limits`, as `so101_guarded` does.
        limits: see `GuardLimits`.
        episode_log: file that each finished episode adds a line of JSON to: task, level, seed, ticks and
            outcome (see `EpisodeOutcome`).
    """

    task: str | None = "lift_cube"
    level: str = "clean"
    starts: str = "eval"
    cameras: list[str] = field(default_factory=lambda: ["top", "wrist"])
    shadows: bool = False
    renderer: str = "auto"
    guarded: bool = False
    limits: GuardLimits = field(default_factory=GuardLimits)
    episode_log: Path | None = None

    def __post_init__(self) -> None:
        self.tasks = [name.strip() for name in str(self.task).split(",")]
        self.levels = [name.strip() for name in self.level.split(",")]
        joints = (len(JOINTS),)
        self.features = {
            OBS_STATE: PolicyFeature(FeatureType.STATE, joints),
            ACTION: PolicyFeature(FeatureType.ACTION, joints),
        }
        for name, shape in self.camera_setup().shapes().items():
            self.features[f"{OBS_IMAGES}.{name}"] = PolicyFeature(FeatureType.VISUAL, shape)
        self.features_map = {key: key for key in self.features}

    def check(self) -> None:
        """Raise ValueError if a task, level, camera, size or rate is not supported.

        Not while options are parsed, because the parser would hide the message.
        """
        for name in self.tasks:
            check_task(name, "--env.task")
        for name in self.levels:
            check_level(name, "--env.level")
        self.camera_setup().check("--env.")
        if self.seg and len(names := self._class_names()) > 1:
            raise ValueError(
                f"--env.task: found tasks whose masks have different classes, {names}, expected one list of "
                "classes. Evaluate them one by one, or without masks: --env.seg=false."
            )
        check_choices(self, {"starts": STARTS}, "--env.")
        if self.fps != FPS:
            raise ValueError(
                f"--env.fps: found {self.fps}, expected {FPS}: the workbench runs at the arm's {FPS} Hz."
            )

    def _class_names(self) -> list[tuple[str, ...]]:
        """Return the different class names of the tasks' masks."""
        from .sim.initial_states import props_of  # not above: they import MuJoCo, and LeRobot imports this
        from .sim.scene import class_names

        scenes = product(self.tasks, self.levels)
        return list(dict.fromkeys(class_names(props_of(task, level)) for task, level in scenes))

    def camera_setup(self) -> CameraSetup:
        return CameraSetup.of(self, self.cameras)

    @property
    def package_name(self) -> str:
        return __package__ or ""

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {
            "starts": self.starts,
            "cameras": self.camera_setup(),
            "renderer": self.renderer,
            "shadows": self.shadows,
            "limits": self.limits if self.guarded else None,
            "episode_log": self.episode_log,
        }

    def get_env_processors(self) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
        """Tell policies the rate and the class names of masks, which LeRobot does not."""
        steps: list[ProcessorStep] = [AddFPSProcessorStep(self.fps)]
        if self.seg:
            steps.append(AddClassNamesProcessorStep(list(self._class_names()[0])))
        return PolicyProcessorPipeline(steps=steps), PolicyProcessorPipeline(steps=[])

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """Create a vectorised environment for every task and level: {"<task>-<level>": {0: envs}}.

        Raises:
            ValueError: see `check`.
        """
        self.check()
        return {
            f"{task}-{level}": {0: self._vectorise(task, level, n_envs, use_async_envs)}
            for task, level in product(self.tasks, self.levels)
        }

    def _vectorise(self, task: str, level: str, n_envs: int, use_async: bool) -> gym.vector.VectorEnv:
        # An environment whose episode has ended is frozen until the rollout is over, to save its steps.
        make = partial(gym.make, gym_id(task), level=level, disable_env_checker=True, **self.gym_kwargs)
        makers = [freeze_after_episode_end(make)] * n_envs
        mode = gym.vector.AutoresetMode.SAME_STEP
        if use_async and n_envs > 1:
            # Processes are forked from a server that has imported these once; each would take seconds to.
            imported = ["lerobot.scripts.lerobot_eval", f"{__package__}.env"]
            multiprocessing.get_context("forkserver").set_forkserver_preload(imported)
            return gym.vector.AsyncVectorEnv(makers, autoreset_mode=mode, context="forkserver")
        return gym.vector.SyncVectorEnv(makers, autoreset_mode=mode)


def gym_id(task: str) -> str:
    """Return the name under which a task is registered with Gymnasium."""
    return f"{__package__}/{task}"
