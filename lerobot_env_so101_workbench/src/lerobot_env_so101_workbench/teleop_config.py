# SPDX-License-Identifier: Apache-2.0
"""`--teleop.type=so101_expert`: the scripted demonstrator instead of a leader arm."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.teleoperators.config import TeleoperatorConfig

from .names import check_disturbance


@TeleoperatorConfig.register_subclass("so101_expert")
@dataclass(kw_only=True)
class SO101ExpertConfig(TeleoperatorConfig):
    """Demonstrates the task of the `so101_sim` robot of the same `world`.

    Args:
        world: name of the robot's world (`--robot.world`).
        disturbance: strength of the disturbance of executed commands [deg]; recorded labels stay clean.
        seed: random seed (of the disturbances).
    """

    world: str = "workbench"
    disturbance: float = 1.2
    seed: int = 0

    def check(self) -> None:
        """Validate the options.

        Raises:
            ValueError: if the disturbance is not 0 to 10 deg.
        """
        check_disturbance(self.disturbance, "--teleop.disturbance")
