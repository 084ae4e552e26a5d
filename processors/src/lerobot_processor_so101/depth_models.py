# SPDX-License-Identifier: Apache-2.0
"""The former path of `lerobot_processor_so101.models.depth`."""

from .models.depth import *  # noqa: F403
