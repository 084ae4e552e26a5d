# SPDX-License-Identifier: Apache-2.0
"""Options of the robot, the teleoperator and the camera; importable without MuJoCo.

`check` is called when a device is built, not while options are parsed: the parser would hide the message.
"""

from dataclasses import dataclass, field
from pathlib import Path

from lerobot.cameras.configs import CameraConfig
from lerobot.robots.config import RobotConfig
from lerobot.teleoperators.config import TeleoperatorConfig

from lerobot_processor_so101.guard import GuardLimits

from .names import FOLLOWER_PORT, check_disturbance, check_level, check_task
from .sim.cameras import CameraSetup, ImageOptions


@RobotConfig.register_subclass("so101_sim")
@dataclass(kw_only=True)
class SO101SimConfig(ImageOptions, RobotConfig):
    """A simulated follower arm with the action and state of `so101_follower`, and `ImageOptions`.

    Args:
        task, level: of the scene.
        instruction: use only initial states with this instruction; sort_cubes needs it to record a dataset
            with one sentence (`--dataset.single_task`).
        seed: training seed of the first initial state; each reset of the scene takes the next seed.
        views: cameras, of top, wrist, front. (LeRobot reserves `cameras` for its own drivers.)
        world: name by which a teleoperator finds this robot in the same process.
        shadows, renderer, guarded, limits: see `SO101SimEnvConfig`.
    """

    task: str = "lift_cube"
    level: str = "clean"
    instruction: str = ""
    seed: int = 0
    views: list[str] = field(default_factory=lambda: ["top", "wrist"])
    world: str = "workbench"
    shadows: bool = False
    renderer: str = "auto"
    guarded: bool = False
    limits: GuardLimits = field(default_factory=GuardLimits)

    def check(self) -> None:
        """Raise ValueError if a task, level, camera or size is not supported."""
        check_task(self.task, "--robot.task")
        check_level(self.level, "--robot.level")
        self.camera_setup().check("--robot.", cameras="views")

    def camera_setup(self) -> CameraSetup:
        return CameraSetup.of(self, self.views)


@TeleoperatorConfig.register_subclass("so101_expert")
@dataclass(kw_only=True)
class SO101ExpertConfig(TeleoperatorConfig):
    """The scripted demonstrator, which does the task of the `so101_sim` robot of the same `world`.

    Args:
        world: name of the robot's world (`--robot.world`).
        disturbance: strength of the disturbance of executed commands [deg]; recorded labels stay clean.
        seed: random seed (of the disturbances).
    """

    world: str = "workbench"
    disturbance: float = 1.2
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError if the disturbance is not 0 to 10 deg."""
        check_disturbance(self.disturbance, "--teleop.disturbance")


@CameraConfig.register_subclass("so101_virtual")
@dataclass(kw_only=True)
class SO101VirtualCameraConfig(CameraConfig):
    """A camera of a running `so101-virtual-arm`.

    Args:
        width, height, fps: those of the arm [pixels, pixels, 1/s]; None accepts any, but not in robots.
        view: top, wrist or front.
        port: the follower's port, which identifies the arm.
    """

    view: str
    port: Path = Path(FOLLOWER_PORT)
