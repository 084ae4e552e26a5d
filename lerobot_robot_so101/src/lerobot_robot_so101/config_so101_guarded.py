# SPDX-License-Identifier: Apache-2.0
"""`--robot.type=so101_guarded`: what `so101_follower` takes, and the limits of its guard."""

from dataclasses import dataclass, field

from lerobot.robots.config import RobotConfig
from lerobot.robots.so_follower.config_so_follower import SOFollowerConfig

from lerobot_processor_so101.guard import GuardLimits


@RobotConfig.register_subclass("so101_guarded")
@dataclass
class SO101GuardedConfig(RobotConfig, SOFollowerConfig):
    """Configuration of a follower arm whose commands pass a guard.

    It has these fields beside those of `so101_follower`, and uses the same calibration file.

    Args:
        limits: limits of the guard. Joint ranges are narrowed further to the calibrated ones.
        margin: distance of the body joints from the ends of their calibrated ranges [deg].
        torque_check_s: time between checks of torque and error status of all servos [s].
        any_calibration: accept a `--policy.path` that was trained on an arm with another calibration.
    """

    limits: GuardLimits = field(default_factory=GuardLimits)
    margin: float = 1.0
    torque_check_s: float = 1.0
    any_calibration: bool = False
