# SPDX-License-Identifier: Apache-2.0
"""`--robot.type=so101_guarded`: what `so101_follower` takes, and the limits of its guard."""

from dataclasses import dataclass, field

from lerobot.robots.config import RobotConfig
from lerobot.robots.so_follower.config_so_follower import SOFollowerConfig

from lerobot_processor_so101.guard import GuardLimits


@RobotConfig.register_subclass("so101_guarded")
@dataclass
class SO101GuardedConfig(RobotConfig, SOFollowerConfig):
    """A follower arm whose commands pass a guard.

    Fields beside those of `so101_follower`, whose calibration file it uses:

    Args:
        limits: of the guard. Joint ranges are narrowed further to what the arm's calibration found.
        margin: of the body joints from the ends of their calibrated ranges [deg].
        torque_check_s: how often it is asked whether all servos still have torque, and are well [s].
        any_calibration: also take a `--policy.path` that was trained on an arm with another calibration.
    """

    limits: GuardLimits = field(default_factory=GuardLimits)
    margin: float = 1.0
    torque_check_s: float = 1.0
    any_calibration: bool = False
