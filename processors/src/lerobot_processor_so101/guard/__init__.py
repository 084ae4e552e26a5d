# SPDX-License-Identifier: Apache-2.0
"""Safety limits of commands: `Guard` passes a command, clamps it, or repeats the last one.

It runs where commands reach an arm, not in a policy's pipeline: a checkpoint cannot add, loosen or remove it.
"""

from .core import Guard, Verdict, judge
from .homing import way_home
from .limits import GuardLimits
from .points import reach

__all__ = ["Guard", "GuardLimits", "Verdict", "judge", "reach", "way_home"]
