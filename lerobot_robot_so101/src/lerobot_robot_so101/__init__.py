# SPDX-License-Identifier: Apache-2.0
"""The real SO-101 behind a guard, for LeRobot's own commands.

Importing this package registers the robot `so101_guarded` and the environment `so101_real`. LeRobot's driver
is imported when one of them is built.
"""

from .config_so101_guarded import SO101GuardedConfig
from .real_env.config import SO101RealEnvConfig

__all__ = ["SO101GuardedConfig", "SO101RealEnvConfig"]


def __getattr__(name: str):
    if name == "SO101Guarded":  # LeRobot finds the device class of a configuration in this module
        from .so101_guarded import SO101Guarded

        return SO101Guarded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
