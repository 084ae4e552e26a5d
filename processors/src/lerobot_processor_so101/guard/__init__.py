# SPDX-License-Identifier: Apache-2.0
"""What stands between a command and the arm: `Guard` passes it, clamps it, or holds the arm where it was told to be.

It is used where commands reach an arm, and nowhere before: a checkpoint cannot bring one, loosen one or remove one.
"""

from .core import Guard, Verdict, judge
from .geometry import JOINTS, reach
from .limits import GuardLimits

__all__ = ["JOINTS", "Guard", "GuardLimits", "Verdict", "judge", "reach"]
