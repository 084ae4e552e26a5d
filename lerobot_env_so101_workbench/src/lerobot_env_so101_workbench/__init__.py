# SPDX-License-Identifier: Apache-2.0
"""An SO-101 on its table in MuJoCo, for LeRobot's own commands.

Importing this package registers the environment `so101_sim`, the robot `so101_sim`, the teleoperator
`so101_expert` and the camera `so101_virtual`. MuJoCo is imported when one of the first three is used.
"""

import gymnasium as gym

from .device_configs import SO101ExpertConfig, SO101SimConfig, SO101VirtualCameraConfig
from .env_config import SO101SimEnvConfig, gym_id
from .names import CAMERA_NAMES, LEVELS, TASK_NAMES
from .sim.cameras import CameraSetup

for _task in TASK_NAMES:
    gym.register(id=gym_id(_task), entry_point=f"{__name__}.env:WorkbenchEnv", kwargs={"task": _task})

# LeRobot imports the class of a device from this module, by its configuration's class name.
_LAZY = {"SO101Sim": ".robot", "SO101Expert": ".teleop", "SO101VirtualCamera": ".camera"}

__all__ = [
    "CAMERA_NAMES",
    "LEVELS",
    "TASK_NAMES",
    "CameraSetup",
    "SO101ExpertConfig",
    "SO101SimConfig",
    "SO101SimEnvConfig",
    "SO101VirtualCameraConfig",
    "gym_id",
]


def __getattr__(name: str):
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
