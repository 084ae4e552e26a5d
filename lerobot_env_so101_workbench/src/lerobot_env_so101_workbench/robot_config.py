# SPDX-License-Identifier: Apache-2.0
"""`--robot.type=so101_sim`: the simulated arm for LeRobot's record, teleoperate, replay and rollout."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.robots.config import RobotConfig

from lerobot_processor_so101.guard import GuardLimits

from .names import check_level, check_task
from .sim.cameras import CameraSetup


@RobotConfig.register_subclass("so101_sim")
@dataclass(kw_only=True)
class SO101SimConfig(RobotConfig):
    """A simulated follower arm with the action and state of `so101_follower`.

    Args:
        task, level: of the scene.
        instruction: use only initial states with this instruction; sort_cubes needs it to record a dataset
            with one sentence (`--dataset.single_task`).
        seed: training seed of the first initial state; each reset of the scene takes the next seed.
        views: cameras, of top, wrist, front. (LeRobot reserves `cameras` for its own drivers.)
        height, width: image size [pixels].
        rgb, seg, depth: observe RGB images, class ids, depth maps (the last two with one channel).
        world: name by which a teleoperator finds this robot in the same process.
        shadows, renderer, guarded, limits: see `SO101SimEnvConfig`.
    """

    task: str = "lift_cube"
    level: str = "clean"
    instruction: str = ""
    seed: int = 0
    views: list[str] = field(default_factory=lambda: ["top", "wrist"])
    height: int = 224
    width: int = 224
    rgb: bool = True
    seg: bool = False
    depth: bool = False
    world: str = "workbench"
    shadows: bool = False
    renderer: str = "auto"
    guarded: bool = False
    limits: GuardLimits = field(default_factory=GuardLimits)

    def check(self) -> None:
        """Validate the options; not while they are parsed, because the parser would hide the message.

        Raises:
            ValueError: if a task, level, camera or size is not supported.
        """
        check_task(self.task, "--robot.task")
        check_level(self.level, "--robot.level")
        self.camera_setup().check("--robot.", cameras="views")

    def camera_setup(self) -> CameraSetup:
        return CameraSetup.of(self, self.views)
