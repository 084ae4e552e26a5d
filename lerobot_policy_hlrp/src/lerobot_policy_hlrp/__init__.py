# SPDX-License-Identifier: Apache-2.0
"""`--policy.type=hlrp_laq` and `--policy.type=hlrp`: latent actions from video, a policy that learns them.

Their models are imported when LeRobot builds one.
"""

import lerobot_processor_so101  # noqa: F401  registers the steps

from .configuration_hlrp import HLRPConfig
from .configuration_hlrp_laq import HLRPLAQConfig

__all__ = ["HLRPConfig", "HLRPLAQConfig"]
