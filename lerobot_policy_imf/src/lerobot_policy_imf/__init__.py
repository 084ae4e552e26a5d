# SPDX-License-Identifier: Apache-2.0
"""`--policy.type=imf`: views through one frozen SigLIP2, a chunk of actions in one step.

Its model is imported when LeRobot builds one.
"""

import lerobot_processor_so101  # noqa: F401  registers the steps

from .configuration_imf import IMFConfig

__all__ = ["IMFConfig"]
