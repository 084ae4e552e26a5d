# SPDX-License-Identifier: Apache-2.0
"""The former path of `lerobot_processor_so101.models`."""

from .models import *  # noqa: F403
