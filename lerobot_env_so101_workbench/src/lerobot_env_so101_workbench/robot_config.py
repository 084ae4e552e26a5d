# SPDX-License-Identifier: Apache-2.0
"""`--robot.type=so101_sim`: the workbench's arm for LeRobot's record, teleoperate, replay and rollout."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.robots.config import RobotConfig

from lerobot_processor_so101.guard import GuardLimits

from .names import check_level, check_task
from .views import View


@RobotConfig.register_subclass("so101_sim")
@dataclass(kw_only=True)
class SO101SimConfig(RobotConfig):
    """A simulated follower arm with the action and state of `so101_follower`.

    Args:
        task, level: what lies on the table.
        instruction: lay out only starts with this instruction; sort_cubes needs it where one sentence is recorded
            for a whole dataset (`--dataset.single_task`).
        seed: the first start is the training start of this seed; every new start is the next seed's.
        views: cameras, of top, wrist, front. (LeRobot reserves the name `cameras` for its own camera drivers.)
        height, width: picture size in pixels.
        rgb, seg, depth: which pictures are taken; `<camera>_seg` and `<camera>_depth` have one channel.
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
        """Say what cannot be. Not done while options are parsed: the parser would bury the sentence.

        Raises:
            ValueError: unknown task, level or camera, or an impossible size.
        """
        check_task(self.task, "--robot.task")
        check_level(self.level, "--robot.level")
        self.view().check("--robot.", cameras="views")

    def view(self) -> View:
        return View(tuple(self.views), self.height, self.width, self.rgb, self.seg, self.depth)
