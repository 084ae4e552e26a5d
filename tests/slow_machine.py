# SPDX-License-Identifier: Apache-2.0
"""Run a console command with long timeouts for the emulated arm and its cameras, for a busy machine.

python -m tests.slow_machine lerobot-teleoperate <its options>
"""

import sys
from functools import partialmethod
from importlib import metadata
from typing import Any

from lerobot.motors.feetech import feetech

from lerobot_env_so101_workbench.camera import SO101VirtualCamera


def set_timeout(packets: Any, packet_length: int) -> None:
    """Let the driver wait 2 s for a reply, instead of 50 ms."""
    packets.packet_start_time = packets.getCurrentTime()
    packets.packet_timeout = 2000


def main() -> None:
    feetech.patch_setPacketTimeout = set_timeout
    SO101VirtualCamera.read_latest = partialmethod(SO101VirtualCamera.read_latest, max_age_ms=60_000)
    del sys.argv[0]
    (command,) = metadata.entry_points(group="console_scripts", name=sys.argv[0])
    sys.exit(command.load()())


if __name__ == "__main__":
    main()
